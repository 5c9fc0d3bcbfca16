package projections

import "sync"

// signal tells whoever waits that something has changed. Waiters take the
// channel, look for themselves, and then wait for it to be closed: a change
// between the two closes the channel they hold.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // of those who wait for the next change; nil: nobody does
}

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
