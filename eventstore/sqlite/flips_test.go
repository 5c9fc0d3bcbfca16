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

	"accountledger/eventstore/sqlite"
)

var flips = flag.Int("flips", 60, "how many single bits TestVerifyRandomFlips flips; 20 at most with -short")

// content is everything a log says, apart from claims, which are an index that
// can be deleted without a trace and not a part of its history.
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

// Row 3: whatever bit flips in the file, no change of the log's content goes
// by unnoticed, and there is always a verdict.
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
	places := orderBits(t, base, file)
	for range flips {
		places = append(places, random.IntN(len(file)*8))
	}
	for _, place := range places {
		at, bit := place/8, byte(1)<<(place%8)
		file[at] ^= bit
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		switch report, problems, err := base.judge(t.Context()); {
		case err != nil:
			refused++
		case !report.OK():
			verify++
		case len(problems) > 0:
			check++
		default:
			harmless++
			if got, err := base.content(t); err != nil || got != want {
				t.Errorf("bit %08b of byte %d flipped: the content differs (%v), unnoticed", bit, at, err)
			}
		}
		file[at] ^= bit
	}
	flips = len(places)
	t.Logf("of %d flips: %d named by Verify, %d only by Check, %d not opened or read, %d without an effect", flips, verify, check, refused, harmless)
	if verify < flips/3 {
		t.Errorf("Verify named only %d of %d", verify, flips)
	}
}

// orderBits returns the places of bits that keep rows in order: a row found out
// of order can send whoever goes from row to row round in circles, and a flip
// at random seldom hits one. They are those of the keys of all checkpoints and
// of some inner cells of the tree of events (sqlite.org/fileformat2.html 1.6).
func orderBits(t *testing.T, f *fixture, file []byte) (places []int) {
	const pageSize = 4096
	for table, layout := range map[string]struct{ header, key, step int }{
		"checkpoints": {8, 2, 1},  // leaf cells: two bytes of length, then the key
		"events":      {12, 4, 9}, // inner cells: a page number, then the key
	} {
		f.query(t, "SELECT rootpage FROM sqlite_schema WHERE name = '"+table+"'", func(rows *sql.Rows) error {
			var root int
			err := rows.Scan(&root)
			page := file[(root-1)*pageSize:][:pageSize]
			for cell := 0; cell < int(binary.BigEndian.Uint16(page[3:])); cell += layout.step {
				key := int(binary.BigEndian.Uint16(page[layout.header+2*cell:])) + layout.key
				for bit := range 16 {
					places = append(places, ((root-1)*pageSize+key)*8+bit)
				}
			}
			return err
		})
	}
	if len(places) < 150 {
		t.Fatalf("only %d bits that keep an order", len(places))
	}
	return places
}

// judge is all that is asked about a file that may be damaged.
func (f *fixture) judge(ctx context.Context) (sqlite.Report, []string, error) {
	r, err := sqlite.OpenReader(ctx, f.dir)
	if err != nil {
		return sqlite.Report{}, nil, err
	}
	defer r.Close()
	report, err := r.Verify(ctx, sqlite.Trust{Verifier: f.verifier, Erasures: []string{erasure}, ErasedKey: erasedKey}, nil)
	if err != nil {
		return report, nil, err
	}
	problems, err := r.Check(ctx)
	return report, problems, err
}
