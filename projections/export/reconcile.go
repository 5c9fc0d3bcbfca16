package export

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"

	"github.com/google/uuid"

	"accountledger/eventstore"
	"accountledger/projections"
)

// Sum says which accounts at which revisions there are, in 64 bits. A target
// system computes it from an export, and keeps it up to date with every event
// it takes: it does not depend on an order.
//
// The checksum of an account is the first 8 bytes, big-endian, of the SHA-256 of
// "<sub>:<revision>"; that of several is their sum modulo 2^64, written in 16
// hexadecimal digits. Erased accounts do not count. It finds mistakes, not
// forgers.
type Sum struct {
	Accounts int64
	checksum uint64
}

// Add adds an account.
func (s *Sum) Add(sub string, revision eventstore.Revision) {
	digest := sha256.Sum256([]byte(sub + ":" + strconv.FormatInt(int64(revision), 10)))
	s.Accounts++
	s.checksum += binary.BigEndian.Uint64(digest[:8])
}

// Checksum is the checksum as it is written.
func (s Sum) Checksum() string { return fmt.Sprintf("%016x", s.checksum) }

// MaxShardDigits bounds how finely accounts are divided.
const MaxShardDigits = 4

// Shard is the part of the accounts that sub belongs to: the first hexadecimal
// digits of its SHA-256.
func Shard(sub string, digits int) string {
	digest := sha256.Sum256([]byte(sub))
	return hex.EncodeToString(digest[:(digits+1)/2])[:digits]
}

var shardName = regexp.MustCompile(`^[0-9a-f]{1,4}$`)

// IsShard reports whether name can be a shard's.
func IsShard(name string) bool { return shardName.MatchString(name) }

// Sums adds up the accounts by shard, at one position. Shards without accounts
// are missing. It looks at every account's revision, which takes about a second
// for a million.
func Sums(ctx context.Context, views *projections.Views, digits int) (at eventstore.Position, all Sum, shards map[string]Sum, err error) {
	shards = map[string]Sum{}
	at, err = living(ctx, views, func(row projections.AccountRow) {
		shard := Shard(row.Sub, digits)
		sum := shards[shard]
		sum.Add(row.Sub, row.Revision)
		shards[shard] = sum
		all.Add(row.Sub, row.Revision)
	})
	return at, all, shards, err
}

// InShard calls each for every account of a shard, at one position.
func InShard(ctx context.Context, views *projections.Views, shard string, each func(projections.AccountRow)) (at eventstore.Position, err error) {
	return living(ctx, views, func(row projections.AccountRow) {
		if Shard(row.Sub, len(shard)) == shard {
			each(row)
		}
	})
}

// living calls each for every account that is not erased.
func living(ctx context.Context, views *projections.Views, each func(projections.AccountRow)) (eventstore.Position, error) {
	at, _, rows, err := views.Accounts().Revisions(ctx)
	if err != nil {
		return 0, err
	}
	for row, err := range rows {
		if err != nil {
			return 0, err
		}
		if row.ErasedTime.IsZero() {
			each(row)
		}
	}
	return at, nil
}

// Held is an account as a target system has it.
type Held struct {
	Sub      string
	Revision eventstore.Revision
}

// Difference is an account that a target system has otherwise than the ledger.
type Difference struct {
	Sub      string              `json:"sub"`
	What     string              `json:"what"`     // missing, behind, ahead, surplus or twice
	Ledger   eventstore.Revision `json:"ledger"`   // the account's revision; -1: the ledger has no such account, or it is erased
	Target   eventstore.Revision `json:"target"`   // -1: the target has none
	Position eventstore.Position `json:"position"` // of the account's last event; 0: no such account
}

// What an account differs in.
const (
	Missing = "missing" // the target does not have it
	Behind  = "behind"  // the target has an older revision
	Ahead   = "ahead"   // the target has a newer one: is it another ledger's?
	Surplus = "surplus" // the target has it and the ledger does not, or no longer
	Twice   = "twice"   // the target has it more than once
)

// Comparison is what came of a comparison.
type Comparison struct {
	Position eventstore.Position // the ledger's side is as it was here
	Equal    int64
	Later    int64 // not compared, because they changed after what the target knows
	Target   int64 // accounts the target has
}

// Compare compares what a target has with the ledger and calls differs for each
// difference, in no order. Accounts that changed after the position known are
// not compared, unless known is 0. The target's accounts are in memory, 24 bytes
// each and what a map needs.
func Compare(ctx context.Context, views *projections.Views, known eventstore.Position, target func(each func(Held)) error, differs func(Difference)) (Comparison, error) {
	var c Comparison
	held := map[uuid.UUID]eventstore.Revision{}
	var invalid error
	err := target(func(h Held) {
		id, err := uuid.Parse(h.Sub)
		if err != nil && invalid == nil {
			invalid = fmt.Errorf("export: account %d of the target has no sub that is a UUID", c.Target+1)
		}
		if c.Target++; err != nil {
			return
		}
		if _, twice := held[id]; twice {
			differs(Difference{Sub: h.Sub, What: Twice, Ledger: eventstore.NoStream, Target: h.Revision})
		}
		held[id] = h.Revision
	})
	if err == nil {
		err = invalid
	}
	if err != nil {
		return c, err
	}
	at, _, rows, err := views.Accounts().Revisions(ctx)
	if err != nil {
		return c, err
	}
	c.Position = at
	for row, err := range rows {
		if err != nil {
			return c, err
		}
		id, err := uuid.Parse(row.Sub)
		if err != nil {
			return c, err
		}
		revision, has := held[id]
		delete(held, id)
		d := Difference{Sub: row.Sub, Ledger: row.Revision, Target: eventstore.NoStream, Position: row.Position}
		if has {
			d.Target = revision
		}
		erased := !row.ErasedTime.IsZero()
		switch {
		case known > 0 && row.Position > known:
			c.Later++
			continue
		case erased && !has:
			continue
		case erased:
			d.What, d.Ledger = Surplus, eventstore.NoStream
		case !has:
			d.What = Missing
		case revision < row.Revision:
			d.What = Behind
		case revision > row.Revision:
			d.What = Ahead
		default:
			c.Equal++
			continue
		}
		differs(d)
	}
	for id, revision := range held {
		differs(Difference{Sub: id.String(), What: Surplus, Ledger: eventstore.NoStream, Target: revision})
	}
	return c, nil
}
