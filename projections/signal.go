package projections

import "sync"

// signal notifies waiters of changes. A waiter calls next, checks its
// condition, and then waits for the channel: a change after next closes it.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // closed at the next change; nil while no waiter has asked for it
}

// next returns a channel that the next raise closes.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) raise() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
