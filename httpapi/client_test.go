package httpapi

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
)

const clientDir = "../testdata/client"

// javaScript returns a function that runs a program of testdata/client's
// packages in the directory dir.
func javaScript(t *testing.T) func(dir string, env []string, program string, args ...string) []byte {
	t.Helper()
	packages, err := filepath.Abs(filepath.Join(clientDir, "node_modules"))
	check(t, err)
	node, err := exec.LookPath("node")
	if _, missing := os.Stat(packages); err != nil || missing != nil {
		t.Skip("needs Node.js and the packages installed by `make client`")
	}
	return func(dir string, env []string, program string, args ...string) []byte {
		t.Helper()
		if !filepath.IsAbs(program) {
			program = filepath.Join(packages, program)
		}
		cmd := exec.CommandContext(t.Context(), node, append([]string{program}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), env...)
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", filepath.Base(program), err, out, said.String())
		}
		return out
	}
}

// TestLint checks the documents with an independent linter and all of its
// recommended rules.
func TestLint(t *testing.T) {
	t.Parallel()
	run := javaScript(t)
	for _, document := range []string{"openapi.json", "asyncapi.json"} {
		path, err := filepath.Abs(document)
		check(t, err)
		// Turns off its telemetry and its check for updates.
		out := run(clientDir, []string{"REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true"},
			"@redocly/cli/bin/cli.js", "lint", path, "--format", "json", "--extends", "recommended-strict")
		var found struct {
			Totals   struct{ Errors, Warnings, Ignored int } `json:"totals"`
			Problems []struct {
				Rule    string `json:"ruleId"`
				Message string `json:"message"`
			} `json:"problems"`
		}
		check(t, json.Unmarshal(out, &found, json.MatchCaseInsensitiveNames(true)))
		if n := found.Totals; n.Errors+n.Warnings+n.Ignored > 0 || !strings.Contains(string(out), `"totals"`) {
			t.Errorf("%s: %+v", document, found)
		}
	}
}

// TestGeneratedClient generates a TypeScript client from the committed document,
// compiles a program that uses it in the compiler's strictest mode, and runs it
// against a ledger.
func TestGeneratedClient(t *testing.T) {
	t.Parallel()
	run := javaScript(t)
	document, err := filepath.Abs("openapi.json")
	check(t, err)
	packages, err := filepath.Abs(filepath.Join(clientDir, "node_modules"))
	check(t, err)
	dir := t.TempDir()
	check(t, os.Symlink(packages, filepath.Join(dir, "node_modules")))
	for _, name := range []string{"package.json", "tsconfig.json", "smoke.ts"} {
		text, err := os.ReadFile(filepath.Join(clientDir, name))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	// The generator would otherwise treat members with a default as required.
	run(dir, nil, "openapi-typescript/bin/cli.js", document, "--output", filepath.Join(dir, "ledger.ts"), "--default-non-nullable=false")
	run(dir, nil, "typescript/bin/tsc")

	l := start(t)
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(receiver.Close)
	out := run(dir, []string{"LEDGER_URL=" + l.url, "LEDGER_KEY=" + l.admin, "RECEIVER_URL=" + receiver.URL}, filepath.Join(dir, "out", "smoke.js"))
	var got struct {
		Sub      string   `json:"sub"`
		From     []string `json:"from"`
		Accepted bool     `json:"accepted"`
		Told     []string `json:"told"`
	}
	check(t, json.Unmarshal(out, &got))
	account := l.want(t, 200, "GET", "/v1/accounts/"+got.Sub, "")
	if len(got.From) != 1 || account.text(t, "combinedFrom.0.sub") != got.From[0] || account.text(t, "identities.0.family_name") != "Lovelace" || !got.Accepted {
		t.Errorf("the client says %+v, and the account is %s", got, account.body)
	}
	if diff := cmp.Diff([]string{"USER_CREATED", "GROUP_MEMBER_ADDED", "USER_UPDATED", "USER_COMBINED"}, got.Told); diff != "" {
		t.Errorf("events in the feed (-want +got):\n%s", diff)
	}
}
