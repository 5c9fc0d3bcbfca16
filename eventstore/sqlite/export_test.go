package sqlite

import "context"

// OnCommit sets f to be called before each commit; if f returns true, SQLite
// rolls the transaction back. Call it only while no transaction is running.
func (s *Store) OnCommit(f func() (fail bool)) {
	s.writer.db.db.RegisterCommitHook(func() int {
		if f() {
			return 1
		}
		return 0
	})
}

// Exec runs SQL on the writer's connection. Call it only while no transaction
// is running.
func (s *Store) Exec(script string) error { return s.writer.db.exec(context.Background(), script) }

// Queued returns the number of appends in the writer's queue.
func (s *Store) Queued() int { return len(s.writer.queue) }
