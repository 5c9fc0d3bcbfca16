package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore/tlog"
)

const testLedger = "accountledger/3f9c0a7e-0000-4000-8000-000000000001"

// signing is a ledger's keys, with one seed for all incarnations.
type signing struct {
	signers map[int]note.Signer
	known   verifiers // the newest first
	vkeys   string    // log.vkey
}

func newSigning(t *testing.T, id string, incarnations int) signing {
	t.Helper()
	skey, _, err := tlog.GenerateKey(id)
	if err != nil {
		t.Fatal(err)
	}
	s := signing{signers: map[int]note.Signer{}}
	for n := range incarnations {
		if skey, err = renameKey(skey, originOf(id, n)); err != nil {
			t.Fatal(err)
		}
		if s.signers[n], err = note.NewSigner(skey); err != nil {
			t.Fatal(err)
		}
		vkey, err := verifierKey(skey)
		if err != nil {
			t.Fatal(err)
		}
		s.vkeys = vkey + "\n" + s.vkeys
	}
	if s.known, err = parseVerifiers(s.vkeys); err != nil {
		t.Fatal(err)
	}
	return s
}

// checkpoint returns a signed note; root distinguishes trees of the same size.
func (s signing) checkpoint(t *testing.T, n int, size int64, root byte) []byte {
	t.Helper()
	signer := s.signers[n]
	msg, err := tlog.Checkpoint{Origin: signer.Name(), Size: size, Root: tlog.Hash{root}}.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		origin, id string
		n          int
	}{
		{testLedger, testLedger, 0},
		{testLedger + "/1", testLedger, 1},
		{testLedger + "/12", testLedger, 12},
		{testLedger + "/0", testLedger + "/0", 0},
		{testLedger + "/01", testLedger + "/01", 0},
		{"accountledger/12345678", "accountledger/12345678", 0},
		{"other", "other", 0},
		{"", "", 0},
	} {
		if ledgerID(tt.origin) != tt.id || incarnation(tt.origin) != tt.n {
			t.Errorf("%q is incarnation %d of %q, want %d of %q", tt.origin, incarnation(tt.origin), ledgerID(tt.origin), tt.n, tt.id)
		}
		if is := originOf(tt.id, tt.n); is != tt.origin {
			t.Errorf("the origin of incarnation %d of %q is %q, want %q", tt.n, tt.id, is, tt.origin)
		}
	}
}

// TestParseVerifiers tests which files are accepted as log.vkey.
func TestParseVerifiers(t *testing.T) {
	t.Parallel()
	three, other := newSigning(t, testLedger, 3), newSigning(t, "accountledger/other", 1)
	lines := strings.SplitAfter(three.vkeys, "\n")
	for _, tt := range []struct {
		name, text string
		want       int // 0: refused
	}{
		{"one", lines[2], 1},
		{"three", three.vkeys, 3},
		{"empty lines", "\n" + lines[0] + "\n" + lines[2] + "\n\n", 2},
		{"oldest first", lines[2] + lines[0], 0},
		{"twice", lines[0] + lines[0], 0},
		{"two ledgers", lines[0] + other.vkeys, 0},
		{"empty", "\n", 0},
		{"damaged", "x" + lines[0], 0},
	} {
		if got, err := parseVerifiers(tt.text); len(got) != tt.want || (err == nil) != (tt.want > 0) {
			t.Errorf("%s: %d keys, %v, want %d", tt.name, len(got), err, tt.want)
		}
	}
	for n := range 3 {
		if c, err := three.known.open(three.checkpoint(t, n, 7, 1)); err != nil || c.Size != 7 || incarnation(c.Origin) != n {
			t.Errorf("the checkpoint of incarnation %d is %+v, %v", n, c, err)
		}
	}
	if _, err := three.known.open(other.checkpoint(t, 0, 7, 1)); err == nil {
		t.Error("the checkpoint of another ledger was accepted")
	}
}

// TestLastSigned publishes checkpoints in turn, and tests which of them the file
// keeps and which are refused.
func TestLastSigned(t *testing.T) {
	t.Parallel()
	s, other := newSigning(t, testLedger, 3), newSigning(t, "accountledger/other", 1)
	config := cli.Config{Data: filepath.Join(t.TempDir(), "data"), LastSigned: filepath.Join(t.TempDir(), "last-signed")}
	last, err := openLastSigned(config, s.known)
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := last.note(); msg != nil || err != nil {
		t.Fatalf("a missing file has %q, %v", msg, err)
	}
	var kept string
	for _, tt := range []struct {
		name  string
		msg   []byte
		keeps bool
		fails bool
	}{
		{"the first", s.checkpoint(t, 0, 5, 1), true, false},
		{"a newer one", s.checkpoint(t, 0, 9, 1), true, false},
		{"an older one", s.checkpoint(t, 0, 8, 1), false, true},
		{"the same", s.checkpoint(t, 0, 9, 1), false, false},
		{"beside it", s.checkpoint(t, 0, 9, 2), false, true},
		{"of another ledger", other.checkpoint(t, 0, 99, 1), false, true},
		{"no checkpoint", []byte("nonsense"), false, true},
		{"a newer incarnation, smaller", s.checkpoint(t, 2, 3, 1), true, false},
		{"an older incarnation, larger", s.checkpoint(t, 1, 99, 1), false, true},
	} {
		if err := last.publish(tt.msg); (err != nil) != tt.fails {
			t.Errorf("%s: %v, want failure %t", tt.name, err, tt.fails)
		}
		if tt.keeps {
			kept = string(tt.msg)
		}
		if is := content(t, config.LastSigned); is != kept {
			t.Errorf("%s: the file has\n%s\nwant\n%s", tt.name, is, kept)
		}
	}
	if left := list(t, filepath.Dir(config.LastSigned)); len(left) != 1 {
		t.Errorf("beside the file are %q", left)
	}
}

// TestLastSignedRefuses tests that a file that does not fit is refused.
func TestLastSignedRefuses(t *testing.T) {
	t.Parallel()
	s, other := newSigning(t, testLedger, 3), newSigning(t, "accountledger/other", 1)
	signed := s.checkpoint(t, 1, 7, 1)
	for _, tt := range []struct {
		name  string
		note  []byte
		known verifiers
		want  string // name of the refusal, "" for none
		binds bool
	}{
		{"empty", []byte("\n"), s.known, "", false},
		{"of the present incarnation", s.checkpoint(t, 2, 7, 1), s.known, "", true},
		{"of an earlier incarnation", signed, s.known, "", false},
		{"of a later incarnation", signed, s.known[2:], refuseSignedReplaced, false},
		{"of another ledger", other.checkpoint(t, 0, 7, 1), s.known, refuseSignedElse, false},
		{"altered", []byte(strings.Replace(string(signed), "\n7\n", "\n8\n", 1)), s.known, refuseSignedDamaged, false},
		{"no checkpoint", []byte("nonsense\x1b[2J\n"), s.known, refuseSignedDamaged, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := cli.Config{Data: "data", LastSigned: filepath.Join(t.TempDir(), "last-signed")}
			if err := os.WriteFile(config.LastSigned, tt.note, 0o600); err != nil {
				t.Fatal(err)
			}
			last, err := openLastSigned(config, tt.known)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if msg, err := last.note(); (msg != nil) != tt.binds || err != nil {
					t.Errorf("the log must include %q, %v, want %t", msg, err, tt.binds)
				}
				return
			}
			if refused := refusedAs(err); refused != tt.want || exitCode(err) != cli.ExitFaults {
				t.Errorf("refused as %q, exit code %d, want %q: %v", refused, exitCode(err), tt.want, err)
			}
			if content(t, config.LastSigned) != string(tt.note) {
				t.Error("the file was changed")
			}
		})
	}
}

// TestLastSignedElsewhere tests that the file must be outside the data directory.
func TestLastSignedElsewhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	for _, name := range []string{filepath.Join(data, "imports"), filepath.Join(dir, "data-signed")} {
		if err := os.MkdirAll(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(data, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		filepath.Join(data, "last"):            cli.ExitUsage,
		filepath.Join(data, "imports", "last"): cli.ExitUsage,
		filepath.Join(dir, "link", "last"):     cli.ExitUsage,
		filepath.Join(dir, "nowhere", "last"):  cli.ExitUsage,
		filepath.Join(dir, "data-signed", "x"): cli.ExitOK,
		filepath.Join(dir, "last"):             cli.ExitOK,
	} {
		if err := checkLastSigned(cli.Config{Data: data, LastSigned: path}); exitCode(err) != want {
			t.Errorf("%s: %v, want exit code %d", path, err, want)
		}
	}
}

// TestLastSignedEmptyDirectory tests that no ledger is created in an empty
// directory while the file has a checkpoint of another one.
func TestLastSignedEmptyDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data, last := filepath.Join(dir, "data"), filepath.Join(dir, "last-signed")
	if err := os.WriteFile(last, newSigning(t, testLedger, 1).checkpoint(t, 0, 17, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := accountledger(t, "admin-key", "--data", data, "--last-signed", last)
	if code != cli.ExitFaults || !strings.Contains(stderr, "with 17 events") {
		t.Errorf("exit code %d, want %d\n%s%s", code, cli.ExitFaults, stdout, stderr)
	}
	if left := list(t, data); len(left) != 0 {
		t.Errorf("the directory has %q", left)
	}
}

// TestLastSignedCreated tests that a ledger creates the missing file from its
// newest checkpoint, and says so.
func TestLastSignedCreated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data, last := filepath.Join(dir, "data"), filepath.Join(dir, "last-signed")
	p := startServer(t, data)
	for i := range 5 {
		p.create(t, fmt.Sprintf("ada%d@example.com", i))
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := accountledger(t, "admin-key", "--data", data, "--last-signed", last)
	if code != cli.ExitOK || !strings.Contains(stderr, "created it from the log") {
		t.Fatalf("exit code %d, want a warning\n%s", code, stderr)
	}
	if msg := strings.Split(content(t, last), "\n"); msg[1] != "5" {
		t.Errorf("the file has a checkpoint of %s events, want 5", msg[1])
	}
	if code, _, stderr := accountledger(t, "admin-key", "--data", data, "--last-signed", last); code != cli.ExitOK || strings.Contains(stderr, "last signed") {
		t.Errorf("the second time: exit code %d\n%s", code, stderr)
	}
	// verify accepts the file as an anchor.
	mustRun(t, "verify", "--data", data, "--anchor", last)
}
