package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/cmd/accountledger/cli"
)

// TestTranscripts runs the commands in each transcript against a new server and
// compares their output and exit codes. Transcripts are in testdata/commands, and
// in docs/commands.md between ```console and ```. Use -update to rewrite the output.
//
// A line "$ accountledger ..." runs the program, with the key in ./data/admin.key;
// "$ cat > FILE" writes a file, and "$ export NAME=value" sets a variable. A here
// document (<<'EOF') is standard input. Values that differ in each run, like ids,
// are replaced.
func TestTranscripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../testdata/commands/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no transcripts: %v", err)
	}
	for _, file := range append(files, "../../docs/commands.md") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := newTranscript(t).replay(string(want), strings.HasSuffix(file, ".md"))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("the output differs from %s; run go test -update to accept it (-want +got):\n%s", file, diff)
			}
		})
	}
}

// transcript is a transcript that is replayed.
type transcript struct {
	t      *testing.T
	dir    string
	server *process
	env    []string
	real   []string // ids, keys and URLs in the output
	shown  []string // their replacements in the transcript
	ids    int
}

// The replacements of URLs and times.
const (
	shownServer   = "http://127.0.0.1:8080"
	shownReceiver = "http://127.0.0.1:49900"
	shownTime     = "2026-11-22T20:00:00Z"
)

var (
	volatileTime = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	volatileID   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	volatileTook = regexp.MustCompile(`\b\d+ ms`)
	// Keys of the API and of webhooks, fingerprints, ids of data keys, and cursors.
	volatileKey    = regexp.MustCompile(`alk_[A-Za-z0-9_-]+|wh(sec|sk|pk)_[A-Za-z0-9+/=]+`)
	volatileDigest = regexp.MustCompile(`\b[0-9a-f]{16,64}\b|[A-Za-z0-9_-]{80,}`)
)

func newTranscript(t *testing.T) *transcript {
	t.Helper()
	dir := t.TempDir()
	x := &transcript{t: t, dir: dir, server: startServer(t, filepath.Join(dir, "data"), "--webhook-allow", "127.0.0.0/8", "--log-level", "debug")}
	receiver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("WebHook-Allowed-Origin", "*")
		if r.URL.Path == "/broken" {
			http.Error(rw, "no", http.StatusUnprocessableEntity)
		}
	}))
	t.Cleanup(receiver.Close)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, cli.EnvPrefix) {
			x.env = append(x.env, v)
		}
	}
	x.real, x.shown = []string{x.server.url, receiver.URL}, []string{shownServer, shownReceiver}
	t.Cleanup(func() {
		for _, private := range []string{"Ada", "Lovelace", "@example", "alk_", "whsec_", "chargeback"} {
			if strings.Contains(x.server.log.String(), private) {
				t.Errorf("the server's log has %q", private)
			}
		}
	})
	return x
}

// replay runs the commands in text and returns text with their current output. If
// marked, the commands are between ```console and ```.
func (x *transcript) replay(text string, marked bool) string {
	x.t.Helper()
	var out strings.Builder
	lines := strings.SplitAfter(text, "\n")
	for i, inside := 0, !marked; i < len(lines); {
		line := lines[i]
		i++
		if marked && (line == "```console\n" || inside && line == "```\n") {
			inside = !inside
		}
		out.WriteString(line)
		command, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "$ ")
		if !inside || !ok {
			continue
		}
		var input strings.Builder
		if before, heredoc := strings.CutSuffix(command, " <<'EOF'"); heredoc {
			command = before
			for ; lines[i] != "EOF\n"; i++ {
				input.WriteString(lines[i])
				out.WriteString(lines[i])
			}
			out.WriteString(lines[i])
			i++
		}
		begin := i
		for i < len(lines) && lines[i] != "" && lines[i] != "```\n" && !strings.HasPrefix(lines[i], "$ ") && !strings.HasPrefix(lines[i], "# ") {
			i++
		}
		out.WriteString(x.do(command, input.String(), strings.Join(lines[begin:i], "")))
	}
	return out.String()
}

// do runs a command and returns its output. It repeats a command that only reads
// until the output is as wanted, because deliveries take a moment.
func (x *transcript) do(command, input, want string) string {
	x.t.Helper()
	words := x.words(command)
	input = replaceAll(input, x.shown, x.real)
	switch words[0] {
	case "export":
		x.env = append(x.env, words[1])
		return separator(want)
	case "cat":
		if err := os.WriteFile(filepath.Join(x.dir, words[2]), []byte(input), 0o600); err != nil {
			x.t.Fatal(err)
		}
		return separator(want)
	case "accountledger":
	default:
		x.t.Fatalf("there is no command %q", words[0])
	}
	asks := slices.ContainsFunc([]string{"get", "list", "deliveries", "lanes", "replays"}, func(verb string) bool { return slices.Contains(words[1:], verb) })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := x.run(words[1:], input) + separator(want)
		if got == want || !asks || *update || time.Now().After(deadline) {
			return got
		}
	}
}

// separator returns the empty line after the output of a command, if it has one.
func separator(printed string) string {
	if printed == "\n" || strings.HasSuffix(printed, "\n\n") {
		return "\n"
	}
	return ""
}

// words splits a command into words like a shell, but supports only single quotes.
func (x *transcript) words(command string) []string {
	var all []string
	for i, part := range strings.Split(command, "'") {
		if i%2 == 1 { // quoted
			all[len(all)-1] += part
			continue
		}
		fields := strings.Fields(part)
		if i > 0 && len(fields) > 0 && !strings.HasPrefix(part, " ") {
			all[len(all)-1] += fields[0]
			fields = fields[1:]
		}
		all = append(all, fields...)
		if strings.HasSuffix(part, " ") {
			all = append(all, "")
		}
	}
	all = slices.DeleteFunc(all, func(word string) bool { return word == "" })
	for i := range all {
		all[i] = replaceAll(all[i], x.shown, x.real)
	}
	return all
}

func replaceAll(text string, from, to []string) string {
	for i := range from {
		text = strings.ReplaceAll(text, from[i], to[i])
	}
	return text
}

// run runs the program and returns its output with replacements, and its exit code
// unless that is 0.
func (x *transcript) run(args []string, input string) string {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "accountledger", args...)
	cmd.Dir, cmd.Env, cmd.Stdin = x.dir, x.env, strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if _, ended := err.(*exec.ExitError); err != nil && !ended {
		x.t.Fatal(err)
	}
	if _, reason, failed := strings.Cut(string(out), "accountledger: "); failed && volatileKey.MatchString(reason) {
		x.t.Errorf("accountledger %s: an error message contains a key", strings.Join(args[:2], " "))
	}
	printed := x.volatile(string(out))
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		printed += fmt.Sprintf("[exit code %d]\n", code)
	}
	return printed
}

// volatile replaces values that differ in each run: it numbers ids and keys in the
// order of their appearance, and makes all times the same.
func (x *transcript) volatile(text string) string {
	text = replaceAll(text, x.real, x.shown)
	named := func(pattern *regexp.Regexp, name func(real string, n int) string) {
		text = pattern.ReplaceAllStringFunc(text, func(real string) string {
			if slices.Contains(x.shown, real) {
				return real
			}
			if i := slices.Index(x.real, real); i >= 0 {
				return x.shown[i]
			}
			x.ids++
			shown := name(real, x.ids)
			x.real, x.shown = append(x.real, real), append(x.shown, shown)
			return shown
		})
	}
	named(volatileKey, func(real string, n int) string {
		prefix, _, _ := strings.Cut(real, "_")
		return fmt.Sprintf("%s_%d", prefix, n)
	})
	named(volatileID, func(_ string, n int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", n) })
	named(volatileDigest, func(real string, n int) string { return fmt.Sprintf("%0*d", min(len(real), 64), n) })
	text = volatileTime.ReplaceAllString(text, shownTime)
	return volatileTook.ReplaceAllString(text, "3 ms")
}
