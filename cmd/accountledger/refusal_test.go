package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/projections"
)

// refusedAs returns the name of the refusal in err, or "".
func refusedAs(err error) string {
	r, ok := errors.AsType[*refusal](err)
	if !ok {
		return ""
	}
	for _, known := range refusals {
		if regexp.MustCompile("^" + regexp.MustCompile(`<[a-z]+>`).ReplaceAllString(regexp.QuoteMeta(known.what), ".*") + "$").MatchString(r.what) {
			return known.name
		}
	}
	return "unknown"
}

// TestRefusals tests that each refusal says all that an operator needs, on lines
// that fit a terminal.
func TestRefusals(t *testing.T) {
	t.Parallel()
	word := regexp.MustCompile(`<([a-z]+)>`)
	names := map[string]bool{}
	for _, known := range refusals {
		if names[known.name] {
			t.Errorf("%s is there twice", known.name)
		}
		names[known.name] = true
		if known.what == "" || known.cause == "" || known.do == "" {
			t.Errorf("%s does not say what does not fit, why, or what to do", known.name)
		}
		for _, text := range []string{known.what, known.cause, known.do, known.override} {
			if text = strings.TrimSuffix(text, "<why>"); text != "" && !strings.HasSuffix(text, ".") {
				t.Errorf("%s: %q is not a sentence", known.name, text)
			}
		}
		var pairs []string
		for _, m := range word.FindAllStringSubmatch(known.what+known.cause+known.do+known.override, -1) {
			pairs = append(pairs, m[1], "/var/lib/accountledger")
		}
		err := refuse(known.name, nil, pairs...)
		if exitCode(err) != cli.ExitFaults || refusedAs(err) != known.name {
			t.Errorf("%s: exit code %d, refused as %s", known.name, exitCode(err), refusedAs(err))
		}
		lines := strings.Split("accountledger: "+err.Error(), "\n")
		if word.MatchString(err.Error()) || len(lines) < 5 {
			t.Errorf("%s is not complete:\n%v", known.name, err)
		}
		for _, line := range lines {
			if len(line) > helpWidth {
				t.Errorf("%s: a line is too long: %q", known.name, line)
			}
		}
	}
}

// TestExplain tests which errors become refusals.
func TestExplain(t *testing.T) {
	t.Parallel()
	c := cli.Config{Data: "data"}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errStoreForeign, refuseForeign},
		{errStoreNewer, refuseNewer},
		{errStoreCorrupt, refuseCorrupt},
		{seal.ErrMaster, refuseMaster},
		{eventstore.ErrTampered, refuseTampered},
		{refuse(refuseSignedAhead, nil), refuseSignedAhead},
		{&projections.AheadError{File: "data/views.db", Seen: 12, Head: 10, Why: projections.AheadOfLog}, refuseViewsAhead},
		{&projections.AheadError{File: "data/views.db", Seen: 10, Head: 12, Why: projections.OtherEvent}, refuseViewsBeside},
		{&projections.AheadError{File: "data/views.db", Why: projections.OtherLedger}, refuseViewsForeign},
		{&projections.AheadError{File: "data/delivery.db", Seen: 12, Head: 10, Why: projections.AheadOfLog}, refuseSentAhead},
		{&projections.AheadError{File: "data/delivery.db", Seen: 10, Head: 12, Why: projections.OtherEvent}, refuseSentBeside},
		{&projections.AheadError{File: "data/delivery.db", Why: projections.OtherLedger}, refuseSentForeign},
		{errLocked, ""},
		{errors.New("any other"), ""},
	} {
		err := explain(c, fmt.Errorf("open: %w", tt.err))
		if refusedAs(err) != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%v is refused as %q, want %q: %v", tt.err, refusedAs(err), tt.want, err)
		}
		if regexp.MustCompile(`<[a-z]+>`).MatchString(err.Error()) && tt.want != refuseSignedAhead {
			t.Errorf("the refusal is not complete:\n%v", err)
		}
	}
	if err := explain(c, nil); err != nil {
		t.Errorf("no error becomes %v", err)
	}
}

// TestRefuseFiles starts ledgers whose files do not fit.
func TestRefuseFiles(t *testing.T) {
	t.Parallel()
	complete, other := t.TempDir(), t.TempDir()
	for _, dir := range []string{complete, other} {
		mustRun(t, "admin-key", "--data", dir)
	}
	for _, tt := range []struct {
		name   string
		damage func(d directory) error
		want   string
	}{
		{"no log key", func(d directory) error { return remove(d, logKeyFile) }, "has no log.key"},
		{"no keys", func(d directory) error { return remove(d, keysFile) }, "but not keys.db"},
		{"no log", func(d directory) error { return remove(d, logFile) }, "but not log.db"},
		{"public key of another ledger", func(d directory) error { return replace(d, logVKeyFile, other) }, "are not a key pair"},
		{"master key of another ledger", func(d directory) error { return replace(d, masterKeyFile, other) }, "does not open keys.db"},
		{"log of another ledger", func(d directory) error { return replace(d, logFile, other) }, "not the log of this ledger"},
		{"interrupted roll-back", func(d directory) error { return cli.CreateFile(d.path(forkPlanFile), "{}", 0o600) }, "is not complete"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := directory(t.TempDir())
			for _, name := range list(t, complete) {
				if err := replace(d, name, complete); err != nil {
					t.Fatal(err)
				}
			}
			if err := tt.damage(d); err != nil {
				t.Fatal(err)
			}
			for _, command := range []string{"admin-key", "serve"} {
				code, stdout, stderr := accountledger(t, command, "--data", string(d))
				if code != cli.ExitFaults || !strings.Contains(strings.Join(strings.Fields(stderr), " "), tt.want) {
					t.Errorf("%s: exit code %d, want %d and %q\n%s%s", command, code, cli.ExitFaults, tt.want, stdout, stderr)
				}
			}
		})
	}
}

func remove(d directory, name string) error { return os.Remove(d.path(name)) }

// replace replaces a file of the directory by that of another one.
func replace(d directory, name, from string) error {
	info, err := os.Stat(directory(from).path(name))
	if err != nil || info.IsDir() {
		return err
	}
	text, err := os.ReadFile(directory(from).path(name))
	if err != nil {
		return err
	}
	return os.WriteFile(d.path(name), text, 0o600)
}
