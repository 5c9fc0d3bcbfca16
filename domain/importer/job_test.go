package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"accountledger/domain"
)

// TestApply imports records one by one and checks the result and the account after
// each.
func TestApply(t *testing.T) {
	t.Parallel()
	const mapping = `
source: crm
format: ndjson
key: /id
createdTime: {from: /since, onInvalid: drop}
status: {from: /state, transform: [{lookup: {on: VERIFIED, off: DECLINED}}]}
identities:
  - provider: self
    username: /login
    email: {from: /mail, onInvalid: drop}
    email_verified: /sure
    mobile_number: {from: /phone, onInvalid: {keep: customFields.phone}}
    nickname: {from: [/nick, /suffix], join: " the "}
    website: /site
    address: {locality: /city, country: {value: DE}}
  - provider: google
    providerUserId: /google
customFields:
  tier: {from: /tier, transform: [trim, json], onInvalid: drop}
  any: /any
ignore: [/password]
`
	const invalidPhone = "must be a valid telephone number with its country code, like +4915112345678"
	type step struct {
		record string
		want   Result
		then   string // members of the account, as in state
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"absent and empty change nothing, null removes", []step{
			{`{"id":1,"login":"ada","city":"Berlin","tier":"1"}`, Result{Outcome: Created, Events: 1}, `ada - Berlin {"tier":1}`},
			{`{"id":1,"login":"","tier":" "}`, Result{Outcome: Unchanged}, `ada - Berlin {"tier":1}`},
			{`{"id":1,"city":null,"tier":null}`, Result{Outcome: Updated, Events: 2}, `ada -  {}`},
			{`{"id":1,"city":null,"tier":null}`, Result{Outcome: Unchanged}, `ada -  {}`},
			{`{"id":1,"login":null}`, Result{Outcome: Failed, Code: domain.CodeIdentifierRequired,
				Faults: []Finding{{Rule: "The account would have no e-mail address, mobile number or username left."}}}, `ada -  {}`},
		}},
		{"fail", []step{
			{`{"id":1,"login":"ada","site":"nowhere"}`, Result{Outcome: Failed, Code: domain.CodeInvalidRequest,
				Faults: []Finding{{Field: "/identities/0/website", Rule: "must be an http or https URL of at most 2048 bytes"}}}, ``},
			{`{"id":1,"login":"ada"}`, Result{Outcome: Created, Events: 1}, `ada -  {}`},
			{`{"id":1,"tier":"2","site":"nowhere"}`, Result{Outcome: Failed, Code: domain.CodeInvalidRequest,
				Faults: []Finding{{Field: "/identities/0/website", Rule: "must be an http or https URL of at most 2048 bytes"}}}, `ada -  {}`},
		}},
		{"drop", []step{
			{`{"id":1,"login":"ada","mail":"ada@","since":"soon","tier":"gold"}`, Result{Outcome: Created, Events: 1, Warnings: []Finding{
				{"/customFields/tier", "must be a JSON value", "dropped"},
				{"/createdTime", "must be a time in the past: RFC 3339, or seconds or milliseconds since 1970", "dropped"},
				{"/identities/0/email", "must be an e-mail address", "dropped"},
			}}, `ada -  {}`},
			{`{"id":1,"mail":"ada@example.com"}`, Result{Outcome: Updated, Events: 1}, `ada ada@example.com  {}`},
			{`{"id":1,"mail":"ada@"}`, Result{Outcome: Unchanged, Warnings: []Finding{
				{"/identities/0/email", "must be an e-mail address", "dropped"}}}, `ada ada@example.com  {}`},
		}},
		{"keep", []step{
			{`{"id":1,"login":"ada","phone":"12"}`, Result{Outcome: Created, Events: 1, Warnings: []Finding{
				{"/identities/0/mobile_number", invalidPhone, "kept as customFields.phone"}}}, `ada -  {"phone":"12"}`},
			{`{"id":1,"phone":"+4915112345678"}`, Result{Outcome: Updated, Events: 2}, `ada +4915112345678  {}`},
			{`{"id":1,"phone":"13"}`, Result{Outcome: Updated, Events: 2, Warnings: []Finding{
				{"/identities/0/mobile_number", invalidPhone, "kept as customFields.phone"}}}, `ada -  {"phone":"13"}`},
		}},
		{"another way to sign in", []step{
			{`{"id":1,"login":"ada"}`, Result{Outcome: Created, Events: 1}, `ada -  {}`},
			{`{"id":1,"google":1095}`, Result{Outcome: Updated, Events: 1}, `ada -  {} google:1095`},
			{`{"id":1,"google":"1095"}`, Result{Outcome: Unchanged}, `ada -  {} google:1095`},
			{`{"id":1,"google":"1096"}`, Result{Outcome: Updated, Events: 1}, `ada -  {} google:1095 google:1096`},
		}},
		{"numbers keep their digits", []step{
			{`{"id":1,"login":"ada","any":{"n":9007199254740993,"m":[1.50]}}`, Result{Outcome: Created, Events: 1, Warnings: []Finding{
				{"/customFields/any", "a number has more digits than a JSON number preserves", "kept as text"}}}, `ada -  {"any":{"m":[1.5],"n":"9007199254740993"}}`},
		}},
		{"status", []step{
			{`{"id":1,"login":"ada","state":"off"}`, Result{Outcome: Created, Events: 1}, `ada -  {} DECLINED`},
			{`{"id":1}`, Result{Outcome: Unchanged}, `ada -  {} DECLINED`},
			{`{"id":1,"state":"on"}`, Result{Outcome: Updated, Events: 1}, `ada -  {}`},
			{`{"id":1,"state":"gone"}`, Result{Outcome: Failed, Faults: []Finding{{Field: "/userStatus", Rule: "must be a value of the lookup table"}}}, `ada -  {}`},
		}},
		{"join", []step{
			{`{"id":1,"login":"ada","nick":"Ada","suffix":"Great"}`, Result{Outcome: Created, Events: 1}, `ada Ada the Great  {}`},
			{`{"id":1,"login":"ada","nick":"Ada","suffix":null}`, Result{Outcome: Updated, Events: 1}, `ada Ada  {}`},
		}},
		{"not the type", []step{
			{`{"id":1,"login":["ada"],"sure":"maybe","mail":7}`, Result{Outcome: Failed, Faults: []Finding{
				{Field: "/identities/0/username", Rule: "must be text, a number, true or false, not a list or an object"},
				{Field: "/identities/0/email_verified", Rule: "must be true or false"},
			}}, ``},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, err := ParseMapping([]byte(mapping))
			check(t, err)
			ledger := openLedger(t)
			for i, step := range tt.steps {
				_, results := ledger.imports(t, m, "x.ndjson", []byte(step.record))
				got := results[0]
				sub := got.Sub
				step.want.Row, step.want.Key, step.want.Sub = 1, "1", sub
				if diff := cmp.Diff(step.want, got, cmp.Comparer(sameFindings), cmpopts.IgnoreUnexported(Result{})); diff != "" {
					t.Errorf("step %d (-want +got):\n%s", i+1, diff)
				}
				account, err := ledger.Account(t.Context(), sub)
				check(t, err)
				if got := state(account); got != step.then {
					t.Errorf("step %d: the account is %s, want %s", i+1, got, step.then)
				}
			}
		})
	}
}

func sameFindings(a, b []Finding) bool { return slices.Equal(a, b) }

// state returns the parts of an account that TestApply checks.
func state(a domain.Account) string {
	if !a.Exists() {
		return ""
	}
	p := a.Identities[0].Profile
	contact, city := "-", ""
	for _, c := range []string{p.Email, p.MobileNumber, p.Nickname} {
		if c != "" {
			contact = c
		}
	}
	if p.Address != nil {
		city = p.Address.Locality
	}
	text := fmt.Sprintf("%s %s %s {", p.Username, contact, city)
	for i, key := range slices.Sorted(maps.Keys(a.CustomFields)) {
		text += strings.Repeat(",", min(i, 1)) + fmt.Sprintf("%q:%s", key, a.CustomFields[key])
	}
	text += "}"
	for _, identity := range a.Identities[1:] {
		text += " " + identity.Provider + ":" + identity.ProviderUserID
	}
	if a.Status != domain.StatusVerified {
		text += " " + string(a.Status)
	}
	return text
}

// TestResultsHoldNoValues checks that results contain no values of the input.
func TestResultsHoldNoValues(t *testing.T) {
	t.Parallel()
	m, err := ParseMapping([]byte("source: s\nkey: {from: /mail, personal: true}\nidentities: [{provider: self, email: /mail, birthdate: /born, website: {from: /site, onInvalid: drop}}]\n"))
	check(t, err)
	var out bytes.Buffer
	input := `[{"mail":"ada@example.com","born":"then","site":"here"},{"mail":"bob@example.com","site":"here"},{"mail":"BOB@example.com"},{"mail":"bob"}]`
	job := Job{Ledger: openLedger(t).Ledger, Mapping: m, Input: Input{Name: "x.json", Reader: strings.NewReader(input)}, Results: &out}
	summary, err := job.Run(t.Context())
	check(t, err)
	// The third record has another key than the second, but the same address.
	if summary.Created != 1 || summary.Failed != 3 {
		t.Errorf("summary = %+v, want 1 created and 3 failed", summary)
	}
	for _, value := range []string{"ada", "bob", "BOB", "then", "here"} {
		if strings.Contains(out.String(), `"`+value) || strings.Contains(out.String(), value+"@") {
			t.Errorf("the results hold %q:\n%s", value, out.String())
		}
	}
}

func TestKeyThatLooksPersonal(t *testing.T) {
	t.Parallel()
	m, err := ParseMapping([]byte("source: s\nkey: /mail\nidentities: [{provider: self, email: /mail}]\n"))
	check(t, err)
	_, results := openLedger(t).imports(t, m, "x.json", []byte(`[{"mail":"ada@example.com"},{"mail":null},{}, 7]`))
	for i, r := range results {
		if r.Outcome != Failed || r.Key != "" || r.Sub != "" {
			t.Errorf("row %d: %+v, want it FAILED without key and sub", i+1, r)
		}
	}
}

// TestSub checks that a record has the same sub on every machine and in every
// version.
func TestSub(t *testing.T) {
	t.Parallel()
	m, err := ParseMapping([]byte("source: crm\nkey: /id\nidentities: [{provider: self, username: /id}]\n"))
	check(t, err)
	_, results := openLedger(t).imports(t, m, "x.json", []byte(`[{"id":"a1"}]`))
	// uuid5(uuid5(NAMESPACE_URL, "accountledger/import/crm"), "a1")
	if want := "b8a5d9e0-cd0b-579a-9357-18667ccff8ba"; results[0].Sub != want {
		t.Errorf("sub = %s, want %s", results[0].Sub, want)
	}
}

func TestMissed(t *testing.T) {
	t.Parallel()
	m, err := ParseMapping([]byte(`
source: s
key: /id
identities:
  - {provider: self, username: /login, address: {locality: /home/city}}
  - {each: /logins, provider: /at, providerUserId: /name}
customFields: {second: /list/1, all: /whole}
ignore: [/password, /secret/pin]
`))
	check(t, err)
	got, _ := openLedger(t).imports(t, m, "x.json", []byte(`[
		{"id":1,"login":"a","home":{"city":"B","zip":1},"password":"x","secret":{"pin":1,"hint":"x"},"whole":{"x":[1]},"tag~/":1,
		 "logins":[{"at":"google","name":"1","token":"x"},{"at":"saml","name":"2","token":"y"}],"list":[1,2,3]},
		{"id":2,"login":"b","home":"B","extra":{"deep":{"er":1}},"nothing":null,"empty":"","none":[],"void":{}}]`))
	want := map[string]int64{"/home/zip": 1, "/secret/hint": 1, "/tag~0~1": 1, "/logins/*/token": 1, "/list/*": 1, "/home": 1, "/extra": 1}
	if diff := cmp.Diff(want, got.Missed); diff != "" {
		t.Errorf("members that the mapping neither uses nor ignores (-want +got):\n%s", diff)
	}
}

// TestOrder checks that rows of one account are applied in order, whatever runs
// concurrently.
func TestOrder(t *testing.T) {
	t.Parallel()
	m, err := ParseMapping([]byte("source: s\nkey: /id\nidentities: [{provider: self, username: /login}]\ncustomFields: {n: /n}\n"))
	check(t, err)
	var input bytes.Buffer
	const accounts, rounds = 20, 20
	for n := range rounds {
		for id := range accounts {
			fmt.Fprintf(&input, `{"id":%d,"login":"user%d","n":%d}`+"\n", id, id, n)
		}
	}
	ledger := openLedger(t)
	got, results := ledger.imports(t, m, "x.ndjson", input.Bytes())
	if got.Created != accounts || got.Updated != accounts*(rounds-1) {
		t.Errorf("summary = %+v, want %d created and the others updated", got, accounts)
	}
	for _, r := range results[:accounts] {
		n := 0
		for x, err := range ledger.History(t.Context(), r.Sub, 1) {
			check(t, err)
			n++
			if v := string(x.Event.(domain.CustomFieldsUpdated).Values["n"]); v != fmt.Sprint(n) {
				t.Fatalf("event %d of %s sets %s", n, r.Sub, v)
			}
		}
		if n != rounds-1 {
			t.Errorf("%s has %d changes, want %d", r.Sub, n, rounds-1)
		}
	}
}

func TestProvenance(t *testing.T) {
	t.Parallel()
	m, err := ParseMapping([]byte("source: crm\nkey: /id\ncreatedTime: /since\nidentities: [{provider: self, username: /id}]\n"))
	check(t, err)
	ledger := openLedger(t)
	_, results := ledger.imports(t, m, "x.json", []byte(`[{"id":"a","since":"2001-02-03T04:05:06Z"}]`))
	if got := ledger.account(t, results[0].Sub).CreatedTime; !got.Equal(time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)) {
		t.Errorf("createdTime = %v, want the source's", got)
	}
	for x, err := range ledger.History(t.Context(), results[0].Sub, 0) {
		check(t, err)
		if x.Meta.Actor.String() != "import:crm" || x.Meta.CorrelationID == "" || x.Event.(domain.AccountCreated).Origin != domain.OriginImported {
			t.Errorf("the event says %+v, want the import actor crm", x.Meta)
		}
	}
}

// TestLedgerFails checks that a failure of the ledger itself ends the import.
func TestLedgerFails(t *testing.T) {
	t.Parallel()
	m, err := ParseMapping([]byte("source: s\nkey: /id\nidentities: [{provider: self, username: /id}]\n"))
	check(t, err)
	ledger := openLedger(t)
	check(t, ledger.log.Close())
	job := Job{Ledger: ledger.Ledger, Mapping: m, Input: Input{Name: "x.json", Reader: strings.NewReader(`[{"id":"a"},{"id":"b"}]`)}, Results: io.Discard}
	if summary, err := job.Run(t.Context()); err == nil || summary.Rows != 0 {
		t.Errorf("Run over a closed log = %+v, %v, want an error", summary, err)
	}
}

// canceling cancels a context after a number of bytes has been read.
type canceling struct {
	io.Reader
	after  int
	cancel context.CancelFunc
}

func (c *canceling) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p[:min(len(p), 512)])
	if c.after -= n; c.after < 0 {
		c.cancel()
	}
	return n, err
}

func TestResume(t *testing.T) {
	t.Parallel()
	const rows = 400
	text := generated(rows)
	m, err := ParseMapping([]byte(generatedMapping))
	check(t, err)
	other, err := ParseMapping([]byte(generatedMapping + "# another file\n"))
	check(t, err)

	for _, tt := range []struct {
		name    string
		change  func(t *testing.T, j *Job) // changes the job of the second run
		resumes bool
	}{
		{"resumes", func(*testing.T, *Job) {}, true},
		{"resume not set", func(_ *testing.T, j *Job) { j.Resume = false }, false},
		{"another input", func(_ *testing.T, j *Job) { j.Input.Name = "y.ndjson" }, false},
		{"another size", func(_ *testing.T, j *Job) { j.Input.Size++ }, false},
		{"a changed input", func(_ *testing.T, j *Job) { j.Input.Modified = j.Input.Modified.Add(time.Second) }, false},
		{"another mapping", func(_ *testing.T, j *Job) { j.Mapping = other }, false},
		{"another ledger", func(_ *testing.T, j *Job) { j.LedgerID = "other" }, false},
		{"an older log", func(_ *testing.T, j *Job) { j.Head = 1 }, false},
		{"results lost", func(t *testing.T, j *Job) { check(t, os.Truncate(j.ResultsFile, 10)) }, false},
		{"journal truncated", func(t *testing.T, j *Job) { check(t, os.Truncate(j.Journal, 40)) }, false},
		{"results longer", func(t *testing.T, j *Job) {
			f, err := os.OpenFile(j.ResultsFile, os.O_APPEND|os.O_WRONLY, 0)
			check(t, err)
			_, err = f.WriteString(`{"row":100000}` + "\n" + `{"row`)
			check(t, errors.Join(err, f.Close()))
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ledger := openLedger(t)
			dir := t.TempDir()
			job := func() *Job {
				head, err := ledger.log.Head(t.Context())
				check(t, err)
				return &Job{
					Ledger: ledger.Ledger, LedgerID: "this", Head: head, Mapping: m, Now: now, Workers: 8, Resume: true,
					Input:       Input{Name: "x.ndjson", Reader: bytes.NewReader(text), Size: int64(len(text)), Modified: now()},
					ResultsFile: filepath.Join(dir, "results"), Journal: filepath.Join(dir, "journal"),
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			j := job()
			j.Input.Reader = &canceling{j.Input.Reader, len(text) / 2, cancel}
			first, err := j.Run(ctx)
			if !errors.Is(err, context.Canceled) || first.Rows == 0 || first.Rows >= rows || first.Created != first.Rows {
				t.Fatalf("the canceled run: %+v, %v", first, err)
			}
			if lines := resultsIn(t, j.ResultsFile); int64(len(lines)) != first.Rows {
				t.Fatalf("the canceled run wrote %d results of %d rows", len(lines), first.Rows)
			}

			j = job()
			tt.change(t, j)
			resumed := int64(-1)
			j.Resumed = func(s Summary) { resumed = s.Rows }
			second, err := j.Run(t.Context())
			check(t, err)
			want := Summary{Rows: rows, Created: rows, Events: rows}
			if !tt.resumes {
				want = Summary{Rows: rows, Created: rows - first.Rows, Unchanged: first.Rows, Events: rows - first.Rows}
			}
			want.Findings, want.Missed = second.Findings, map[string]int64{}
			if diff := cmp.Diff(want, second); diff != "" {
				t.Errorf("the second run (-want +got):\n%s", diff)
			}
			if tt.resumes && resumed != first.Rows || !tt.resumes && resumed != 0 {
				t.Errorf("the second run resumed after row %d; the first had done %d", resumed, first.Rows)
			}
			if lines := resultsIn(t, j.ResultsFile); len(lines) != rows {
				t.Errorf("the results have %d rows, want %d", len(lines), rows)
			}
			if head, err := ledger.log.Head(t.Context()); err != nil || head != rows {
				t.Errorf("the log has %d events, %v, want %d", head, err, rows)
			}
			if _, err := os.Stat(j.Journal); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("Stat of the journal after a complete import = %v, want %v", err, os.ErrNotExist)
			}
		})
	}
}

func resultsIn(t *testing.T, path string) []Result {
	t.Helper()
	text, err := os.ReadFile(path)
	check(t, err)
	return results(t, text)
}

// TestResumeBehindTheEnd checks that a journal with more rows than the input is
// refused.
func TestResumeBehindTheEnd(t *testing.T) {
	t.Parallel()
	m, err := ParseMapping([]byte(generatedMapping))
	check(t, err)
	ledger := openLedger(t)
	path := filepath.Join(t.TempDir(), "journal")
	job := Job{Ledger: ledger.Ledger, Mapping: m, Now: now, Resume: true, Journal: path, Results: io.Discard, Input: Input{Name: "x.ndjson"}}
	rec, err := job.openRecorder()
	check(t, err)
	check(t, rec.add(Result{Row: 1}))
	check(t, rec.add(Result{Row: 2}))
	check(t, rec.close(false))
	job.Input.Reader = bytes.NewReader(generated(1))
	if _, err := job.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "the journal records 2 rows as done") {
		t.Errorf("Run = %v, want an error about the journal", err)
	}
}

func TestUnwritable(t *testing.T) {
	t.Parallel()
	m, err := ParseMapping([]byte(generatedMapping))
	check(t, err)
	none := filepath.Join(t.TempDir(), "none", "file")
	for _, job := range []*Job{{ResultsFile: none}, {Results: io.Discard, Journal: none}} {
		job.Ledger, job.Mapping, job.Input = openLedger(t).Ledger, m, Input{Name: "x.ndjson", Reader: bytes.NewReader(generated(3))}
		if s, err := job.Run(t.Context()); err == nil || s.Events != 0 {
			t.Errorf("Run with a file that cannot be written = %+v, %v, want an error and no event", s, err)
		}
	}
}
