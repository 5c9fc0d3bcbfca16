package sqlite

import (
	"context"
	"time"
)

// OnCommit sets f to be called before each commit; if f returns true, SQLite
// rolls the transaction back. From then on only Close signs checkpoints, so that
// the commits are those of the test.
func (s *Store) OnCommit(f func() (fail bool)) {
	for idle := false; !idle; time.Sleep(time.Millisecond) {
		_ = s.writer.do(context.Background(), func() {
			if idle = !s.writer.auditing; !idle {
				return // an audit is running
			}
			s.writer.lastSign = time.Now().Add(time.Hour)
			s.writer.db.db.RegisterCommitHook(func() int {
				if f() {
					return 1
				}
				return 0
			})
		})
	}
}

// Exec runs SQL on the writer's connection. Call it only while no transaction
// is running.
func (s *Store) Exec(script string) error { return s.writer.db.exec(context.Background(), script) }

// Queued returns the number of appends in the writer's queue.
func (s *Store) Queued() int { return len(s.writer.queue) }
