package sqlite

import "context"

// OnCommit has f called for each transaction that is about to commit, and the
// transaction rolled back where f says so. To be called while nothing writes.
func (s *Store) OnCommit(f func() (fail bool)) {
	s.writer.db.db.RegisterCommitHook(func() int {
		if f() {
			return 1
		}
		return 0
	})
}

// Exec runs SQL on the writer's connection. To be called while nothing writes.
func (s *Store) Exec(script string) error { return s.writer.db.exec(context.Background(), script) }

// Queued is the number of appends that wait for the writer.
func (s *Store) Queued() int { return len(s.writer.queue) }
