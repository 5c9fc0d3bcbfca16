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

// Sum is a 64-bit checksum over a set of accounts and their revisions. It does
// not depend on an order, so a target system can compute it from an export and
// update it with every event.
//
// The checksum of an account is the first 8 bytes, big-endian, of the SHA-256 of
// "<sub>:<revision>"; that of several is their sum modulo 2^64, written in 16
// hexadecimal digits. Erased accounts do not count. It detects mistakes, not
// manipulation.
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

// Checksum returns the checksum as 16 hexadecimal digits.
func (s Sum) Checksum() string { return fmt.Sprintf("%016x", s.checksum) }

// maxShardDigits is the maximum number of digits in the name of a shard.
const maxShardDigits = 4

// Shard returns the name of the shard that sub belongs to: the first hexadecimal
// digits of its SHA-256.
func Shard(sub string, digits int) string {
	digest := sha256.Sum256([]byte(sub))
	return hex.EncodeToString(digest[:(digits+1)/2])[:digits]
}

var shardName = regexp.MustCompile(fmt.Sprintf(`^[0-9a-f]{1,%d}$`, maxShardDigits))

// IsShard reports whether name is a valid name of a shard.
func IsShard(name string) bool { return shardName.MatchString(name) }

// Sums returns the checksums of all accounts and of each shard in a snapshot at
// position at. shards omits shards without accounts. Sums reads every account's
// revision, which takes about a second for a million accounts.
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

// InShard calls each for every account of a shard in a snapshot at position at.
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

// Held is an account that a target system has.
type Held struct {
	Sub      string
	Revision eventstore.Revision
}

// Difference is an account that differs between a target system and the ledger.
type Difference struct {
	Sub      string              `json:"sub"`
	What     string              `json:"what"`     // Missing, Behind, Ahead, Surplus or Twice
	Ledger   eventstore.Revision `json:"ledger"`   // the account's revision in the ledger; -1: the ledger has no such account, or it is erased
	Target   eventstore.Revision `json:"target"`   // the account's revision in the target; -1: the target has no such account
	Position eventstore.Position `json:"position"` // of the account's last event; 0: the ledger has no such account
}

// The kinds of Difference.
const (
	Missing = "missing" // the target does not have the account
	Behind  = "behind"  // the target has an older revision
	Ahead   = "ahead"   // the target has a newer revision, perhaps from another ledger
	Surplus = "surplus" // the target has an account that the ledger does not have or has erased
	Twice   = "twice"   // the target has the account more than once
)

// Comparison is the result of Compare.
type Comparison struct {
	Position eventstore.Position // of the ledger's snapshot
	Equal    int64               // the number of equal accounts
	Later    int64               // the number of accounts not compared because they changed after the target's position
	Target   int64               // the number of the target's accounts
}

// Compare compares a target system's accounts with the ledger and calls differs
// for each difference, in no particular order. target calls its argument for each
// of the target's accounts. known is the position up to which the target has
// applied the log: accounts that changed after it are not compared; 0 compares
// all. Compare keeps a map of the target's accounts in memory, 24 bytes per entry
// plus the map's overhead.
func Compare(ctx context.Context, views *projections.Views, known eventstore.Position, target func(each func(Held)) error, differs func(Difference)) (Comparison, error) {
	var c Comparison
	held := map[uuid.UUID]eventstore.Revision{}
	var invalid error
	err := target(func(h Held) {
		id, err := uuid.Parse(h.Sub)
		if err != nil && invalid == nil {
			invalid = fmt.Errorf("export: account %d of the target has a sub that is not a UUID", c.Target+1)
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
