package sqlite_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore/sqlite"
)

var flips = flag.Int("flips", 60, "number of random bits that TestVerifyRandomFlips flips; at most 20 with -short")

// content returns the whole content of the log as text, except the claims, which
// are an index and not part of the log's history.
func (f *fixture) content(t *testing.T) (string, error) {
	var b strings.Builder
	db := f.db(t)
	defer db.Close()
	for _, query := range []string{
		"SELECT e.*, s.name, p.bytes FROM events e LEFT JOIN streams s ON s.num = e.stream LEFT JOIN sealed p USING (position) ORDER BY e.position",
		"SELECT * FROM tiles ORDER BY level, n", "SELECT * FROM checkpoints ORDER BY size",
	} {
		rows, err := db.Query(query)
		if err != nil {
			return "", err
		}
		columns, err := rows.Columns()
		if err != nil {
			return "", err
		}
		values := make([]any, len(columns))
		for i := range values {
			values[i] = new(any)
		}
		for rows.Next() {
			if err := rows.Scan(values...); err != nil {
				return "", err
			}
			for _, v := range values {
				fmt.Fprintf(&b, "%T %x ", *v.(*any), *v.(*any))
			}
			b.WriteByte('\n')
		}
		if err := rows.Err(); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

// TestVerifyRandomFlips flips single bits of the file and checks that each
// change of the log's content is detected, and that Verify always terminates.
func TestVerifyRandomFlips(t *testing.T) {
	t.Parallel()
	base := newFixture(t)
	want, err := base.content(t)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(base.dir, "log.db")
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flips := *flips
	if testing.Short() {
		flips = min(flips, 20)
	}
	random := rand.New(rand.NewPCG(rand.Uint64(), 2))
	var verify, check, refused, harmless int
	offsets := orderBits(t, base, file)
	for range flips {
		offsets = append(offsets, random.IntN(len(file)*8))
	}
	for _, offset := range offsets {
		at, bit := offset/8, byte(1)<<(offset%8)
		file[at] ^= bit
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		switch report, problems, err := base.examine(t.Context()); {
		case err != nil:
			refused++
		case !report.OK():
			verify++
		case len(problems) > 0:
			check++
		default:
			harmless++
			if got, err := base.content(t); err != nil || got != want {
				t.Errorf("with bit %08b of byte %d flipped, the content changed (%v), but nothing reported it", bit, at, err)
			}
		}
		file[at] ^= bit
	}
	flips = len(offsets)
	t.Logf("of %d flips, Verify reported %d, only Check reported %d, opening or reading failed for %d, and %d had no effect", flips, verify, check, refused, harmless)
	if verify < flips/3 {
		t.Errorf("Verify reported only %d of %d flips", verify, flips)
	}
}

// orderBits returns the offsets of bits that keep rows in order. A row out of
// order can make a scan loop forever, and a random flip seldom hits such a bit.
// They belong to the keys of all checkpoints and of some interior cells of the
// events table's B-tree (sqlite.org/fileformat2.html, section 1.6).
func orderBits(t *testing.T, f *fixture, file []byte) (offsets []int) {
	const pageSize = 4096
	for table, layout := range map[string]struct{ header, key, step int }{
		"checkpoints": {8, 2, 1},  // leaf cells: a length of two bytes, then the key
		"events":      {12, 4, 9}, // interior cells: a page number, then the key
	} {
		f.query(t, "SELECT rootpage FROM sqlite_schema WHERE name = '"+table+"'", func(rows *sql.Rows) error {
			var root int
			err := rows.Scan(&root)
			page := file[(root-1)*pageSize:][:pageSize]
			for cell := 0; cell < int(binary.BigEndian.Uint16(page[3:])); cell += layout.step {
				key := int(binary.BigEndian.Uint16(page[layout.header+2*cell:])) + layout.key
				for bit := range 16 {
					offsets = append(offsets, ((root-1)*pageSize+key)*8+bit)
				}
			}
			return err
		})
	}
	if len(offsets) < 150 {
		t.Fatalf("found only %d bits that keep rows in order, want at least 150", len(offsets))
	}
	return offsets
}

// examine runs Verify and Check on a file that may be damaged.
func (f *fixture) examine(ctx context.Context) (sqlite.Report, []string, error) {
	r, err := sqlite.OpenReader(ctx, f.dir)
	if err != nil {
		return sqlite.Report{}, nil, err
	}
	defer r.Close()
	report, err := r.Verify(ctx, sqlite.Trust{Verifiers: []note.Verifier{f.verifier}, Erasures: []string{erasure}, ErasedKey: erasedKey}, nil)
	if err != nil {
		return report, nil, err
	}
	problems, err := r.Check(ctx)
	return report, problems, err
}
