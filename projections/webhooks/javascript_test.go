package webhooks

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/eventstore"
)

const receivers = "../../testdata/receivers"

// javaScript starts the receiver in JavaScript. It returns its address and a
// function that reads the next event it received.
func javaScript(t *testing.T, secret string) (url string, said func() javaScriptEvent) {
	t.Helper()
	node, err := exec.LookPath("node")
	if _, missing := os.Stat(filepath.Join(receivers, "node_modules")); err != nil || missing != nil {
		t.Skip("needs Node.js, and `make receivers` to have been run")
	}
	cmd := exec.Command(node, "receiver.mjs")
	cmd.Dir, cmd.Stderr = receivers, t.Output()
	cmd.Env = append(os.Environ(), "WEBHOOK_SECRET="+secret)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // returns an error, because it was killed
	})
	lines := bufio.NewScanner(out)
	said = func() (e javaScriptEvent) {
		t.Helper()
		if !lines.Scan() {
			t.Fatal("the receiver ended")
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Refused != "" {
			t.Fatalf("the receiver in JavaScript says %s", lines.Text())
		}
		return e
	}
	return said().Listening, said
}

// javaScriptEvent is a line that receiver.mjs prints.
type javaScriptEvent struct {
	Listening string              `json:"listening"`
	Refused   string              `json:"refused"`
	Form      string              `json:"form"`
	ID        string              `json:"id"`
	Type      string              `json:"type"`
	Sub       string              `json:"sub"`
	Sequence  eventstore.Revision `json:"sequence"`
	Email     string              `json:"email"`
}

// The JavaScript libraries accept every format: that of Standard Webhooks verifies
// the signatures, the CloudEvents SDK reads the events.
func TestJavaScriptAccepts(t *testing.T) {
	t.Parallel()
	for format, form := range map[string]string{domain.FormatStandard: "standard", domain.FormatEvent: "structured", domain.FormatBinary: "binary", domain.FormatBatch: "batch"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			url, said := javaScript(t, v1Secret)
			w := newWorld(t, Config{PublicURL: ledgerURL})
			for _, sub := range []string{"ada", "bob"} {
				w.execute(sub, domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{{
					IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: domain.Profile{GivenName: "Zoë 日本", Email: sub + "@example.com"}}}})
				w.touch(sub, 2)
			}
			c := secretly(url, v1Secret)
			c.Format = format
			w.create("crm", c)
			w.run()
			sequence := map[string]eventstore.Revision{}
			for range 6 {
				e := said()
				if e.Form != form || e.ID == "" || e.Sequence != sequence[e.Sub] || (e.Type == "USER_CREATED") != (e.Email == e.Sub+"@example.com") {
					t.Errorf("read as %+v, want %s, sequence %d", e, form, sequence[e.Sub])
				}
				sequence[e.Sub]++
			}
			if sequence["ada"] != 3 || sequence["bob"] != 3 {
				t.Errorf("received: %v, want 3 of each account", sequence)
			}
		})
	}
}
