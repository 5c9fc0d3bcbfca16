package importer

import (
	"bytes"
	"database/sql"
	"fmt"
	"io"
	"path/filepath"
	"testing"
)

// generated returns an input with n generated people.
func generated(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, `{"id":%d,"mail":"person%d@example.com","name":"Person","family":"Number %d","phone":"+49 151 1%07d","born":"1990-%d-%d","city":"Berlin","tier":"gold","password":"x"}`+"\n",
			i, i, i, i%10_000_000, i%12+1, i%28+1)
	}
	return b.Bytes()
}

const generatedMapping = `
source: generated
format: ndjson
key: /id
identities:
  - provider: self
    email: /mail
    mobile_number: {from: /phone, onInvalid: {keep: customFields.phone_as_exported}}
    given_name: /name
    family_name: /family
    birthdate: {from: /born, transform: [date]}
    address: {locality: /city}
customFields: {tier: /tier}
ignore: [/password]
`

// BenchmarkRun measures rows per second; one operation is one row. Run it with
// go test -run '^$' -bench Run -benchtime 100000x
func BenchmarkRun(b *testing.B) {
	for _, bb := range []struct {
		name string
		runs int // before the measured one
		want func(Summary) int64
	}{
		{"Created", 0, func(s Summary) int64 { return s.Created }},
		{"Unchanged", 1, func(s Summary) int64 { return s.Unchanged }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			m, err := ParseMapping([]byte(generatedMapping))
			check(b, err)
			input := generated(b.N)
			ledger := openLedger(b)
			for run := range bb.runs + 1 {
				if run == bb.runs {
					b.ResetTimer()
				}
				job := Job{Ledger: ledger.Ledger, Mapping: m, Input: Input{Name: "x.ndjson", Reader: bytes.NewReader(input)}, Results: io.Discard}
				summary, err := job.Run(b.Context())
				check(b, err)
				if run == bb.runs && bb.want(summary) != int64(b.N) {
					b.Fatalf("summary = %+v", summary)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkLimit measures an upper bound for comparison with an import: inserting
// rows of the size of an imported account in key order, a thousand per
// transaction, without parsing, checking, sealing or claiming anything.
func BenchmarkLimit(b *testing.B) {
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(b.TempDir(), "limit.db")+"?_journal_mode=WAL&_synchronous=FULL&_txlock=immediate&_cache_size=-16384")
	check(b, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec("CREATE TABLE t (position INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT")
	check(b, err)
	row := make([]byte, 1000)
	b.ResetTimer()
	for done := 0; done < b.N; {
		tx, err := db.Begin()
		check(b, err)
		insert, err := tx.Prepare("INSERT INTO t (bytes) VALUES (?)")
		check(b, err)
		for range min(1000, b.N-done) {
			_, err := insert.Exec(row)
			check(b, err)
			done++
		}
		check(b, tx.Commit())
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
