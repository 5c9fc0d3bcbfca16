package importer

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"accountledger/domain"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
	"accountledger/eventstore/tlog"
)

// testLedger is a ledger with real files.
type testLedger struct {
	*domain.Ledger
	dir string
	log *sqlite.Store
}

func openLedger(t testing.TB) *testLedger {
	t.Helper()
	dir := t.TempDir()
	skey, _, err := tlog.GenerateKey("test")
	check(t, err)
	return openLedgerIn(t, dir, skey, seal.NewMaster())
}

func openLedgerIn(t testing.TB, dir, skey string, master seal.Master) *testLedger {
	t.Helper()
	pool := 0
	if _, test := t.(*testing.T); test {
		pool = 64 // a small ledger opens faster with fewer keys generated in advance
	}
	keys, err := seal.Open(t.Context(), seal.Config{Path: filepath.Join(dir, "keys.db"), Master: master, PoolSize: pool})
	check(t, err)
	signer, err := note.NewSigner(skey)
	check(t, err)
	log, err := sqlite.Open(t.Context(), sqlite.Config{Dir: dir, Signer: signer, Vouch: keys.Vouch})
	check(t, err)
	t.Cleanup(func() {
		check(t, log.Close())
		check(t, keys.Close())
	})
	return &testLedger{domain.NewLedger(domain.LedgerConfig{Log: log, Codec: domain.Codec{Keys: keys}}), dir, log}
}

// imports runs a whole import and returns its summary and results.
func (l *testLedger) imports(t testing.TB, m *Mapping, name string, input []byte) (Summary, []Result) {
	t.Helper()
	var out bytes.Buffer
	job := Job{Ledger: l.Ledger, Mapping: m, Input: Input{Name: name, Reader: bytes.NewReader(input)}, Results: &out, Workers: 16, Now: now}
	summary, err := job.Run(t.Context())
	check(t, err)
	return summary, results(t, out.Bytes())
}

// now is a time after those in the tests' inputs.
func now() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

// results decodes the results of an import and checks that they are in order.
func results(t testing.TB, lines []byte) []Result {
	t.Helper()
	var all []Result
	for d := json.NewDecoder(bytes.NewReader(lines)); d.More(); {
		var r Result
		check(t, d.Decode(&r))
		if all = append(all, r); r.Row != int64(len(all)) {
			t.Fatalf("result %d is of row %d", len(all), r.Row)
		}
	}
	return all
}

func (l *testLedger) account(t testing.TB, sub string) domain.Account {
	t.Helper()
	a, err := l.Account(t.Context(), sub)
	check(t, err)
	if !a.Exists() {
		t.Fatalf("there is no account %s", sub)
	}
	return a
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
