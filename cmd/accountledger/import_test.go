package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain/importer"
)

const importSamples = "../../testdata/imports/"

func TestImportPeople(t *testing.T) {
	t.Parallel()
	data, results := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "results.ndjson")
	people := []string{"import", "--data", data, "--mapping", importSamples + "people-208.yaml", "--results", results, importSamples + "people-208.json"}
	code, stdout, stderr := accountledger(t, people...)
	if code != cli.ExitOK || !strings.Contains(stdout, "CREATED     208") || !strings.Contains(stdout, "kept as customFields.phone_as_exported") {
		t.Errorf("import = %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, stderr = accountledger(t, people...)
	if code != cli.ExitOK || !strings.Contains(stdout, "UNCHANGED   208") {
		t.Errorf("import again = %d\n%s%s", code, stdout, stderr)
	}
	if lines, err := os.ReadFile(results); err != nil || bytes.Count(lines, []byte("\n")) != 208 || bytes.Contains(lines, []byte("@")) {
		t.Errorf("the results: %v, %d lines, want 208 without e-mail addresses", err, bytes.Count(lines, []byte("\n")))
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(results), "*journal*")); err != nil || len(left) > 0 {
		t.Errorf("a complete import left %v", left)
	}
	realm := []string{"import", "--data", data, "--mapping", importSamples + "keycloak-realm.yaml", "--results", results, importSamples + "keycloak-quarkus-realm.json"}
	code, stdout, stderr = accountledger(t, realm...)
	if code != cli.ExitOK || !strings.Contains(stdout, "CREATED       3") || !strings.Contains(stdout, "role     confidential") {
		t.Errorf("import of a realm = %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, stderr = accountledger(t, append(realm, "--json")...)
	var again struct {
		Summary importer.Summary `json:"summary"`
	}
	if err := json.Unmarshal([]byte(stdout), &again); err != nil || code != cli.ExitOK || again.Summary.Unchanged != 3 || again.Summary.Events != 0 {
		t.Errorf("import of a realm again = %d\n%s%s", code, stdout, stderr)
	}
}

func TestImportRefusals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mapping := write("m.yaml", "source: s\nkey: /id\nidentities: [{provider: self, username: /name}]\n")
	bad := write("bad.yaml", "source: s\nkye: /id\nidentities: [{provider: self, username: /name}]\n")
	input := write("in.ndjson", `{"id":1,"name":"ada"}`+"\n"+`{"id":2,"name":"not a name"}`+"\n")
	broken := write("broken.json", `[{"id":3,"name":"bob"},`)
	noEnding := write("input", "")
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no input", []string{"--mapping", mapping}, cli.ExitUsage, "accepts 1 arg"},
		{"no mapping", []string{input}, cli.ExitUsage, "--mapping"},
		{"missing mapping", []string{"--mapping", dir + "/none.yaml", input}, cli.ExitUsage, "no such file"},
		{"invalid mapping", []string{"--mapping", bad, input}, cli.ExitUsage, `line 2: mapping: unknown member "kye"`},
		{"missing input", []string{"--mapping", mapping, dir + "/none.json"}, cli.ExitUsage, "no such file"},
		{"input a directory", []string{"--mapping", mapping, write("d.json", "") + "/.."}, cli.ExitUsage, ""},
		{"no format", []string{"--mapping", mapping, noEnding}, cli.ExitUsage, "format is required"},
		{"no workers", []string{"--mapping", mapping, "--workers", "0", input}, cli.ExitUsage, "workers"},
		{"a row fails", []string{"--mapping", mapping, input}, cli.ExitRows, "1 of 2 rows failed"},
		{"the input is truncated", []string{"--mapping", mapping, broken}, cli.ExitFailed, "stopped after row 1; run the same command again to continue"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"import", "--data", filepath.Join(t.TempDir(), "data")}, tt.args...)
			code, stdout, stderr := accountledger(t, args...)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("import = %d, want %d and %q\n%s%s", code, tt.code, tt.want, stdout, stderr)
			}
		})
	}
}

// TestImportPipe imports standard input and prints results to standard output.
func TestImportPipe(t *testing.T) {
	t.Parallel()
	mapping := filepath.Join(t.TempDir(), "m.yaml")
	if err := os.WriteFile(mapping, []byte("source: s\nformat: csv\nkey: /id\nidentities: [{provider: self, username: /name}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	args := []string{"import", "--json", "--data", filepath.Join(t.TempDir(), "data"), "--mapping", mapping, "-"}
	code := run(t.Context(), args, strings.NewReader("id,name\n1,ada\n2,bob\n"), &out, &errs)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if code != cli.ExitOK || len(lines) != 3 || !strings.Contains(lines[1], `"row":2`) || !strings.HasPrefix(lines[2], `{"summary":{"rows":2,"created":2`) {
		t.Errorf("import = %d\n%s%s", code, &out, &errs)
	}
}

// TestImportKilled kills an import in the middle and runs it again. The second
// run continues after the rows that the journal lists, and imports no row twice.
func TestImportKilled(t *testing.T) {
	t.Parallel()
	const rows = 3000
	dir := t.TempDir()
	mapping, input, data := filepath.Join(dir, "m.yaml"), filepath.Join(dir, "in.ndjson"), filepath.Join(dir, "data")
	var people bytes.Buffer
	for i := range rows {
		fmt.Fprintf(&people, `{"id":%d,"name":"user%d"}`+"\n", i+1, i+1)
	}
	for path, text := range map[string]string{mapping: "source: s\nkey: /id\nidentities: [{provider: self, username: /name}]\n", input: people.String()} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"import", "--json", "--data", data, "--mapping", mapping, input}

	// With one worker each row needs an fsync, which makes the import slow enough.
	victim := exec.Command("accountledger", append(args, "--workers", "1")...)
	stdout, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	// The command prints a row before the journal has it, so wait for the journal.
	var journal struct {
		Summary importer.Summary `json:"summary"`
	}
	results := bufio.NewScanner(stdout)
	for journal.Summary.Rows == 0 && results.Scan() {
		if text, err := os.ReadFile(input + ".results.ndjson.journal"); err == nil {
			err = json.Unmarshal(text, &journal)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	victim.Process.Kill()
	victim.Wait()
	if n := journal.Summary.Rows; n == 0 || n == rows {
		t.Fatalf("the import was killed after %d rows", n)
	}

	code, out, stderr := accountledger(t, args...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var first importer.Result
	var last struct {
		Summary importer.Summary `json:"summary"`
	}
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatal(err)
	}
	s := last.Summary
	if code != cli.ExitOK || s.Rows != rows || s.Created+s.Unchanged != rows || int64(len(lines)-1) != rows-first.Row+1 {
		t.Errorf("import = %d, %+v, %d lines from row %d on\n%s", code, s, len(lines), first.Row, stderr)
	}
	if first.Row <= journal.Summary.Rows || !strings.Contains(stderr, fmt.Sprintf("continuing after row %d\n", first.Row-1)) {
		t.Errorf("it continued at row %d and printed:\n%s", first.Row, stderr)
	}
	code, out, stderr = accountledger(t, "events", "--json", "--data", data)
	if got := strings.Count(out, `"account.created.v1"`); code != cli.ExitOK || got != rows || strings.Count(out, "\n") != rows {
		t.Errorf("events = %d: %d lines, %d creations, want %d\n%s", code, strings.Count(out, "\n"), got, rows, stderr)
	}
}

// TestServerKilledImporting kills the server during an import over HTTP and sends
// the import again: it continues, and imports no row twice.
func TestServerKilledImporting(t *testing.T) {
	t.Parallel()
	const rows = 2000
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := os.WriteFile(filepath.Join(dir, "crm.yaml"), []byte("source: s\nkey: /id\nidentities: [{provider: self, username: /name}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var people strings.Builder
	for i := range rows {
		fmt.Fprintf(&people, `{"id":%d,"name":"user%d"}`+"\n", i+1, i+1)
	}
	type job struct {
		State   string `json:"state"`
		Rows    int    `json:"rows"`
		Created int    `json:"created"`
		Failed  int    `json:"failed"`
	}
	send := func(p *process, input io.Reader) (job, error) {
		request, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"/v1/imports?mapping=crm", input)
		if err != nil {
			return job{}, err
		}
		request.Header.Set("Authorization", "Bearer "+p.key)
		request.Header.Set("Content-Type", "application/x-ndjson")
		request.Header.Set("Idempotency-Key", "once")
		response, err := p.client.Do(request)
		if err != nil {
			return job{}, err
		}
		defer response.Body.Close()
		var done job
		return done, json.UnmarshalRead(response.Body, &done)
	}
	victim := startServer(t, data, "--import-mappings", dir)
	r, w := io.Pipe() // the body never ends, so the server is killed during the import
	cut := make(chan error, 1)
	go func() { _, err := send(victim, r); cut <- err }()
	go io.WriteString(w, people.String()[:people.Len()/2])
	for half := false; !half; {
		_, text, err := victim.do(t.Context(), "GET", "/v1/imports", "")
		if err != nil {
			t.Fatal(err)
		}
		var all struct {
			Imports []job `json:"imports"`
		}
		if err := json.Unmarshal(text, &all); err != nil {
			t.Fatal(err)
		}
		half = len(all.Imports) == 1 && all.Imports[0].Rows > rows/4
	}
	victim.kill()
	w.Close()
	if err := <-cut; err == nil {
		t.Fatal("the import was not interrupted")
	}
	p := startServer(t, data, "--import-mappings", dir)
	_, text, err := p.do(t.Context(), "GET", "/v1/imports", "")
	if err != nil || !strings.Contains(string(text), `"state":"interrupted"`) {
		t.Fatalf("imports = %s, %v", text, err)
	}
	done, err := send(p, strings.NewReader(people.String()))
	if err != nil || done.State != "done" || done.Rows != rows || done.Failed != 0 {
		t.Fatalf("import = %+v, %v", done, err)
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := accountledger(t, "events", "--json", "--data", data)
	if got := strings.Count(out, `"account.created.v1"`); code != cli.ExitOK || got != rows || strings.Count(out, "\n") != rows {
		t.Errorf("events = %d: %d lines, %d creations, want %d\n%s", code, strings.Count(out, "\n"), got, rows, stderr)
	}
}
