package sqlite

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// Adoption says how to seal a log of version 1, which has no sealed head. Open
// does so once, after it has verified the whole log. If it is interrupted, the
// next Open begins again.
type Adoption struct {
	// Trust is what the verification relies on. Without Trust.Verifiers, Open
	// refuses a log of version 1.
	Trust Trust
	// Authentic checks, with the keys beside the log, that the ledger sealed an
	// event's personal part, and reports whether it could: not if the key was
	// destroyed. Open asks for each event that no checkpoint covers,
	// and for the first and the last with a sealed part. So it adopts neither
	// forged events nor the keys of another ledger.
	Authentic func(eventstore.Recorded) (checked bool, err error)
	// AcceptUncovered also adopts events without a personal part that no
	// checkpoint covers. Nothing shows whether this ledger wrote them.
	AcceptUncovered bool
	// Bind, if not nil, is called after all checks and before the log is sealed,
	// to make the key file that of this ledger.
	Bind func() error
	// Progress, if not nil, is called with numbers of events.
	Progress func(done, total int64)
}

// Unsealed reports that a log of version 1 was not adopted.
type Unsealed struct {
	Position eventstore.Position // of the event that was not adopted
	Reason   string
	// Clear reports that the only objection is that no checkpoint covers the
	// event and that it has no personal part: AcceptUncovered overrides it.
	Clear bool
}

func (e *Unsealed) Error() string {
	return fmt.Sprintf("sqlite: the log of an earlier version cannot be sealed: event %d: %s", e.Position, e.Reason)
}

// adopt gives a log of version 1 its sealed head.
func adopt(ctx context.Context, path string, c Config) error {
	if len(c.Adopt.Trust.Verifiers) == 0 {
		return errors.New("the log was written by an earlier version; start the server once to seal it")
	}
	r := newReader(path)
	defer r.Close()
	report, err := r.Verify(ctx, c.Adopt.Trust, c.Adopt.Progress)
	if err != nil {
		return err
	}
	if !report.OK() {
		f := report.Faults[0]
		return &Unsealed{Position: f.Position, Reason: fmt.Sprintf("%s: %s", f, f.Detail)}
	}
	if err := r.authenticate(ctx, report, c.Adopt); err != nil {
		return err
	}
	db, err := dial(path, readWrite)
	if err != nil {
		return err
	}
	defer db.close()
	w := &writer{db: db}
	tree, err := tlog.Restore(report.Events, w.readTile)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	h := sealedHead{size: report.Events, root: tree.Root(), keys: c.keyState()}
	if h.claims, err = sumClaims(db, c.Vouch, "claims"); err != nil {
		return err
	}
	if h.watched, err = sumWatched(db, c.Vouch, c.Watch); err != nil {
		return err
	}
	if h.slot, err = highestSlot(db); err != nil {
		return err
	}
	origin, err := db.scalar(`SELECT origin FROM meta`)
	if err != nil {
		return err
	}
	if origin != c.Signer.Name() {
		return fmt.Errorf("%w: its key is named %v, not %s", ErrForeign, origin, c.Signer.Name())
	}
	if c.Adopt.Bind != nil {
		if err := c.Adopt.Bind(); err != nil {
			return err
		}
	}
	// In one transaction, so that the log is of one version or the other.
	create := "BEGIN IMMEDIATE; DROP TABLE meta; " + tables("meta", "head", "waiting") + fmt.Sprintf("; PRAGMA user_version = %d;", schemaVersion)
	if err := db.exec(ctx, create); err != nil {
		return err
	}
	if err := createHead(db, c, c.Signer.Name(), 1, h); err != nil {
		return err
	}
	return db.exec(ctx, "COMMIT")
}

// tables returns the statements of the schema that create the named tables.
func tables(names ...string) string {
	var found []string
	for _, statement := range strings.Split(schema, ";\n\n") {
		for _, name := range names {
			if strings.Contains(statement, "CREATE TABLE "+name+" ") {
				found = append(found, statement)
			}
		}
	}
	return strings.Join(found, ";\n")
}

// highestSlot returns the highest slot in the key IDs of the file.
func highestSlot(db *conn) (slot uint64, err error) {
	v, err := db.scalar(`SELECT max(substr(kid, 1, 8)) FROM events WHERE kid IS NOT NULL`)
	if b, ok := v.([]byte); ok && len(b) == 8 {
		slot = binary.BigEndian.Uint64(b)
	}
	return slot, err
}

// authenticate checks the events that no checkpoint covers, and that the keys
// beside the log open its first and its last sealed part.
func (r *Reader) authenticate(ctx context.Context, report Report, a Adoption) error {
	var ends []eventstore.Position
	err := r.use(ctx, func(c *readConn) error {
		for _, query := range []string{`SELECT min(position) FROM sealed`, `SELECT max(position) FROM sealed`} {
			v, err := c.scalar(query)
			if err != nil {
				return err
			}
			if at, ok := v.(int64); ok {
				ends = append(ends, eventstore.Position(at))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	check := func(rec eventstore.Recorded) error {
		if rec.KeyID == (eventstore.KeyID{}) || rec.Erased() {
			if int64(rec.Position) > report.Covered && !a.AcceptUncovered {
				return &Unsealed{rec.Position, "no checkpoint covers it, and it has no personal part that shows who wrote it", true}
			}
			return nil
		}
		checked, err := a.Authentic(rec)
		switch {
		case err != nil:
			return &Unsealed{rec.Position, "the keys beside the log do not open it: " + err.Error(), false}
		case !checked && int64(rec.Position) > report.Covered:
			return &Unsealed{rec.Position, "no checkpoint covers it, and the key of its personal part was destroyed", false}
		}
		return nil
	}
	for _, at := range ends {
		page, err := r.page(ctx, nil, at-1, at)
		if err == nil {
			err = check(page[0])
		}
		if err != nil {
			return err
		}
	}
	for after := eventstore.Position(report.Covered); after < eventstore.Position(report.Events); {
		page, err := r.page(ctx, nil, after, eventstore.Position(report.Events))
		if err != nil {
			return err
		}
		for _, rec := range page {
			if err := check(rec); err != nil {
				return err
			}
		}
		after = page[len(page)-1].Position
	}
	return nil
}
