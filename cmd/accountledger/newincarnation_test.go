package main

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/cmd/accountledger/cli"
)

// rolledBack returns a data directory whose log was replaced by one that lacks
// its last 3 of 8 events, and the file that keeps its last signed checkpoint.
func rolledBack(t *testing.T) (data, signed string) {
	t.Helper()
	dir := t.TempDir()
	data, signed = filepath.Join(dir, "data"), filepath.Join(dir, "last-signed")
	p := startServer(t, data, "--last-signed", signed)
	for i := range 5 {
		p.create(t, fmt.Sprintf("ada%d@example.com", i))
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	older := t.TempDir()
	for _, name := range []string{logFile, keysFile} {
		if err := replace(directory(older), name, data); err != nil {
			t.Fatal(err)
		}
	}
	p = startServer(t, data, "--last-signed", signed)
	for i := range 3 {
		p.create(t, fmt.Sprintf("eva%d@example.com", i))
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{logFile, keysFile} {
		if err := replace(directory(data), name, older); err != nil {
			t.Fatal(err)
		}
	}
	return data, signed
}

// TestNewIncarnation rolls a ledger back and lets it go on.
func TestNewIncarnation(t *testing.T) {
	t.Parallel()
	data, signed := rolledBack(t)
	for _, args := range [][]string{{"serve"}, {"admin-key"}, {"admin-key", "--last-signed", signed}} {
		code, stdout, stderr := accountledger(t, append(args, "--data", data)...)
		if code != cli.ExitFaults || !strings.Contains(stderr, "new-incarnation") {
			t.Errorf("%q: exit code %d, want %d and what to do\n%s%s", args, code, cli.ExitFaults, stdout, stderr)
		}
	}
	run := []string{"new-incarnation", "--data", data, "--last-signed", signed}
	before := content(t, filepath.Join(data, logVKeyFile))
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "--reason"},
		{[]string{"--reason", "restored Monday's backup"}, "--yes"},
	} {
		if code, stdout, stderr := accountledger(t, append(run, tt.args...)...); code != cli.ExitUsage || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q: exit code %d, want %d and %s\n%s%s", tt.args, code, cli.ExitUsage, tt.want, stdout, stderr)
		}
	}
	if content(t, filepath.Join(data, logVKeyFile)) != before {
		t.Error("a refused command changed the keys")
	}
	var done forked
	out := mustRun(t, append(run, "--reason", "restored Monday's backup", "--yes", "--json")...)
	if err := json.Unmarshal([]byte(out), &done); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if done.Size != 5 || done.Lost != 3 || done.SignedSize != 8 || done.Incarnation != 1 || done.PreviousOrigin != done.LedgerID || done.Origin != done.LedgerID+"/1" {
		t.Errorf("the outcome is %+v", done)
	}
	if msg := content(t, signed); !strings.HasPrefix(msg, done.Origin+"\n6\n") {
		t.Errorf("the last signed checkpoint is\n%s", msg)
	}
	if out := mustRun(t, "verify", "--data", data, "--anchor", signed); !strings.Contains(out, "verified: 6 events of "+done.Origin) {
		t.Errorf("verify says\n%s", out)
	}
	if out := mustRun(t, "events", "--data", data, "--after", "5"); !strings.Contains(out, "ledger.forked") {
		t.Errorf("the event after the fork is\n%s", out)
	}
	if code, _, stderr := accountledger(t, append(run, "--reason", "again", "--yes")...); code != cli.ExitFailed || !strings.Contains(stderr, "nothing was lost") {
		t.Errorf("a second time: exit code %d\n%s", code, stderr)
	}

	// The ledger goes on, also through a second roll-back that loses nothing.
	p := startServer(t, data, "--last-signed", signed)
	p.create(t, "ida@example.com")
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "check", "--data", data, "--views")
	mustRun(t, append(run, "--reason", "again", "--yes", "--even-if-nothing-was-lost")...)
	if out := mustRun(t, "verify", "--data", data); !strings.Contains(out, "verified: 8 events of "+done.LedgerID+"/2") {
		t.Errorf("after the second: %s", out)
	}
	if lines := strings.Count(content(t, filepath.Join(data, logVKeyFile)), "\n"); lines != 3 {
		t.Errorf("log.vkey has %d lines, want 3", lines)
	}
}

// TestNewIncarnationInterrupted interrupts the command before each step: the
// ledger does not open until the command, run again, has completed it.
func TestNewIncarnationInterrupted(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"plan", "public key", "key", "delivery", "views", "event", "done"} {
		t.Run(step, func(t *testing.T) {
			data, signed := rolledBack(t)
			c := cli.Config{Data: data, LastSigned: signed}
			killed := errors.New("killed")
			o := forkOptions{reason: "restored Monday's backup", yes: true, before: func(next string) error {
				if next == step {
					return killed
				}
				return nil
			}}
			if _, err := newIncarnation(t.Context(), c, quiet(), o); !errors.Is(err, killed) {
				t.Fatalf("interrupted before %s: %v", step, err)
			}
			if code, _, stderr := accountledger(t, "serve", "--data", data, "--last-signed", signed); code != cli.ExitFaults || !strings.Contains(stderr, "new-incarnation") {
				t.Errorf("the ledger opens: exit code %d\n%s", code, stderr)
			}
			o.before = nil
			for i := range 2 {
				done, err := newIncarnation(t.Context(), c, quiet(), o)
				if i == 1 { // nothing is left to do
					if exitCode(err) != cli.ExitFailed {
						t.Errorf("run once more: %v", err)
					}
					continue
				}
				if err != nil || done.Size != 5 || done.Lost != 3 || done.Incarnation != 1 || done.Continued != (step != "plan") {
					t.Fatalf("continued: %+v, %v", done, err)
				}
			}
			if out := mustRun(t, "verify", "--data", data, "--anchor", signed); !strings.Contains(out, "verified: 6 events") {
				t.Errorf("verify says\n%s", out)
			}
			p := startServer(t, data, "--last-signed", signed)
			p.create(t, "ida@example.com")
			if err := p.stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustRun(t, "check", "--data", data, "--views")
		})
	}
}

// TestNewIncarnationRefuses tests that a ledger is not rolled back without need, nor
// beside a server, nor with a damaged log.
func TestNewIncarnationRefuses(t *testing.T) {
	t.Parallel()
	data, _ := lived(t)
	run := []string{"new-incarnation", "--data", data, "--reason", "test", "--yes"}
	if code, _, stderr := accountledger(t, run...); code != cli.ExitFailed || !strings.Contains(stderr, "nothing was lost") {
		t.Errorf("nothing was lost: exit code %d\n%s", code, stderr)
	}
	p := startServer(t, data)
	if code, _, stderr := accountledger(t, run...); code != cli.ExitLocked {
		t.Errorf("beside a server: exit code %d\n%s", code, stderr)
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	alter(t, filepath.Join(data, logFile), "DROP TRIGGER events_update; UPDATE events SET actor = 'api-key:eva' WHERE position = 3")
	if code, stdout, stderr := accountledger(t, run...); code != cli.ExitFaults || !strings.Contains(stdout, "altered@3") {
		t.Errorf("a damaged log: exit code %d\n%s%s", code, stdout, stderr)
	}
	if there, err := directory(data).has(forkPlanFile); there || err != nil {
		t.Errorf("a refused command left its plan: %v", err)
	}
}

// quiet returns a console that prints nothing.
func quiet() cli.Console { return cli.Console{Out: newBuffer(), Err: newBuffer(), JSON: true} }

// TestNewIncarnationKeepsErased tests that an account whose erasure was lost with
// the end of the log is erased in the new incarnation, and that its identifiers
// are free.
func TestNewIncarnationKeepsErased(t *testing.T) {
	t.Parallel()
	data, backup, sub := erasedSince(t)
	mustRun(t, "restore", "--from", backup, "--data", data, "--lose-newer-events")
	out := mustRun(t, "new-incarnation", "--data", data, "--reason", "test", "--yes", "--even-if-nothing-was-lost")
	if !strings.Contains(out, "stay erased: 1") {
		t.Errorf("the command says\n%s", out)
	}
	mustRun(t, "verify", "--data", data)
	mustRun(t, "admin-key", "--data", data)
	p := startServer(t, data)
	waitUntilReady(t, p)
	if response, text, err := p.do(t.Context(), "GET", "/v1/accounts/"+sub, ""); err != nil || response.StatusCode != http.StatusGone {
		t.Errorf("the erased account: %v, %v: %s", response, err, text)
	}
	p.create(t, "ada@example.com") // the address is free
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "check", "--data", data, "--views")
}

// TestNewIncarnationMissingWAL rolls back a ledger that has lost its write-ahead
// log after a crash.
func TestNewIncarnationMissingWAL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data, signed := filepath.Join(dir, "data"), filepath.Join(dir, "last-signed")
	for i, end := range []func(*process) error{
		func(p *process) error { return p.stop(t.Context()) },
		func(p *process) error { // signs a checkpoint within a second
			if err := p.log.await(t.Context(), "listening"); err != nil {
				return err
			}
			for deadline := time.Now().Add(timeout); !strings.Contains(content(t, signed), "\n4\n"); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					return errors.New("the last events are not signed")
				}
			}
			p.kill()
			return nil
		},
	} {
		p := startServer(t, data, "--last-signed", signed)
		for j := range 2 {
			p.create(t, fmt.Sprintf("ada%d.%d@example.com", i, j))
		}
		if err := end(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := remove(directory(data), logFile+"-wal"); err != nil {
		t.Fatal(err)
	}
	run := []string{"new-incarnation", "--data", data, "--last-signed", signed, "--reason", "lost the write-ahead log", "--yes"}
	for _, args := range [][]string{{"serve", "--data", data, "--last-signed", signed}, {"serve", "--data", data}, run} {
		if code, _, stderr := accountledger(t, args...); code != cli.ExitFaults || !strings.Contains(stderr, "--accept-missing-wal") {
			t.Errorf("%s: exit code %d\n%s", args[0], code, stderr)
		}
	}
	out := mustRun(t, append(run, "--accept-missing-wal")...)
	if !strings.Contains(out, "2 events after 2 are lost") {
		t.Errorf("the command says\n%s", out)
	}
	mustRun(t, "verify", "--data", data, "--anchor", signed)
	p := startServer(t, data, "--last-signed", signed)
	p.create(t, "ida@example.com")
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}
