package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// lastSigned is the file of the setting last-signed. It keeps the newest signed
// checkpoint outside the data directory, so that a log that was restored from an
// older copy is noticed before anything else is signed. A nil *lastSigned keeps
// nothing.
type lastSigned struct {
	path  string
	known verifiers

	mu sync.Mutex // orders publish
}

// openLastSigned opens the file that c names for the ledger with the keys known.
// It returns a refusal if the file is not this ledger's.
func openLastSigned(c cli.Config, known verifiers) (*lastSigned, error) {
	if c.LastSigned == "" {
		return nil, nil
	}
	if err := checkLastSigned(c); err != nil {
		return nil, err
	}
	s := &lastSigned{path: c.LastSigned, known: known}
	_, _, err := s.read()
	return s, err
}

// checkLastSigned refuses a file in the data directory: it would be copied and
// restored together with the log.
func checkLastSigned(c cli.Config) error {
	resolved := func(path string) (string, error) {
		path, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		if real, err := filepath.EvalSymlinks(path); err == nil {
			return real, nil
		}
		return path, nil
	}
	dir, err := resolved(filepath.Dir(c.LastSigned))
	if err != nil {
		return fmt.Errorf("last-signed: %w", err)
	}
	data, err := resolved(c.Data)
	if err != nil {
		return fmt.Errorf("last-signed: %w", err)
	}
	if rel, err := filepath.Rel(data, dir); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return cli.Usagef("last-signed is %q, in the data directory; it must be elsewhere, where a restored copy does not replace it", c.LastSigned)
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return cli.Usagef("last-signed is %q, but there is no directory %s", c.LastSigned, filepath.Dir(c.LastSigned))
	}
	return nil
}

// readNote returns the note in the file at path, nil if there is none.
func readNote(path string) ([]byte, error) {
	msg, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("last-signed: %w", err)
	}
	if len(bytes.TrimSpace(msg)) == 0 {
		return nil, nil
	}
	return msg, nil
}

// read returns the note in the file and its checkpoint, or nil if there is none.
func (s *lastSigned) read() ([]byte, tlog.Checkpoint, error) {
	msg, err := readNote(s.path)
	if msg == nil || err != nil {
		return nil, tlog.Checkpoint{}, err
	}
	origin, _, _ := strings.Cut(string(msg), "\n")
	ours := s.known[0].Name()
	if other, id := ledgerID(origin), ledgerID(ours); other != id {
		if !validOrigin(other) {
			return nil, tlog.Checkpoint{}, refuse(refuseSignedDamaged, nil, "file", s.path)
		}
		return nil, tlog.Checkpoint{}, refuse(refuseSignedElse, nil, "file", s.path, "other", other, "id", id)
	}
	if newer, older := incarnation(origin), incarnation(ours); newer > older {
		return nil, tlog.Checkpoint{}, refuse(refuseSignedReplaced, nil, "file", s.path, "newer", strconv.Itoa(newer), "older", strconv.Itoa(older))
	}
	c, err := s.known.open(msg)
	if err != nil {
		return nil, tlog.Checkpoint{}, refuse(refuseSignedDamaged, err, "file", s.path)
	}
	return msg, c, nil
}

// validOrigin reports whether an unverified text may be shown as an origin.
func validOrigin(text string) bool {
	return text != "" && len(text) <= 200 && text == cli.Printable(text) && strings.Contains(text, "/") && !strings.ContainsAny(text, " +")
}

// note returns the note that the log must include, or nil if there is none. A
// checkpoint of an earlier incarnation does not bind the present one.
func (s *lastSigned) note() ([]byte, error) {
	if s == nil {
		return nil, nil
	}
	msg, c, err := s.read()
	if err != nil || msg == nil || c.Origin != s.known[0].Name() {
		return nil, err
	}
	return msg, nil
}

// publish keeps a checkpoint durably, before the log stores it. It never replaces
// a newer one, and fails if the file has another one of the same size.
func (s *lastSigned) publish(msg []byte) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.known.open(msg)
	if err != nil {
		return fmt.Errorf("last-signed: %w", err)
	}
	// Read it again: another process may have written it, whatever the lock of
	// the data directory says.
	old, kept, err := s.read()
	if err != nil {
		return err
	}
	if old != nil {
		newer, older := incarnation(c.Origin), incarnation(kept.Origin)
		switch {
		case newer < older || newer == older && c.Size < kept.Size:
			return fmt.Errorf("%w: %w", eventstore.ErrTampered, refuse(refuseSignedAhead, nil, "file", s.path, "size", strconv.FormatInt(kept.Size, 10)))
		case newer == older && c.Size == kept.Size && c.Root == kept.Root:
			return nil
		case newer == older && c.Size == kept.Size:
			return fmt.Errorf("%w: %w", eventstore.ErrTampered, refuse(refuseSignedAhead, nil, "file", s.path, "size", strconv.FormatInt(kept.Size, 10)))
		}
	}
	err = cli.WriteFile(s.path, 0o644, os.Rename, func(f *os.File) error {
		_, err := f.Write(msg)
		return err
	})
	if err != nil {
		return fmt.Errorf("last-signed: %w", err)
	}
	return nil
}

// checkpointed is a log whose checkpoints can be read.
type checkpointed interface {
	Checkpoint(ctx context.Context, p eventstore.Position) ([]byte, error)
	Head(ctx context.Context) (eventstore.Position, error)
}

// create creates the file, if it is missing, with the newest checkpoint of the
// log. It warns, because until then an older log would not have been noticed.
func (s *lastSigned) create(ctx context.Context, log checkpointed, logger *slog.Logger) error {
	if s == nil {
		return nil
	}
	if msg, _, err := s.read(); msg != nil || err != nil {
		return err
	}
	newest, err := newestCheckpoint(ctx, log)
	if newest == nil || err != nil {
		return err
	}
	logger.Warn("there was no file with the last signed checkpoint; created it from the log, whose age it therefore does not prove", "file", s.path)
	return s.publish(newest)
}

// newestCheckpoint returns the note of the log's newest checkpoint, or nil.
func newestCheckpoint(ctx context.Context, log checkpointed) (newest []byte, err error) {
	head, err := log.Head(ctx)
	if err != nil {
		return nil, err
	}
	// Checkpoint returns the first that covers a position: find the last position
	// that one covers.
	sort.Search(int(head), func(i int) bool {
		msg, failed := log.Checkpoint(ctx, eventstore.Position(i+1))
		if failed != nil {
			err = failed
			return true
		}
		if msg != nil {
			newest = msg
		}
		return msg == nil
	})
	return newest, err
}
