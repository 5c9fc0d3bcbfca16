package httpapi

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accountledger/domain"
)

const crmMapping = "source: crm\nkey: /id\nidentities:\n  - provider: self\n    email: /mail\n    given_name: /name\ncustomFields: {tier: /tier}\nignore: [/secret]\n"

// withMapping returns a multipart body with a mapping and rows, and its Content-Type.
func withMapping(mapping, rows string) (body, header string) {
	const edge = "xxedgexx"
	return "--" + edge + "\r\nContent-Disposition: form-data; name=\"mapping\"\r\n\r\n" + mapping +
		"\r\n--" + edge + "\r\nContent-Disposition: form-data; name=\"input\"; filename=\"rows.ndjson\"\r\n\r\n" + rows +
		"\r\n--" + edge + "--\r\n", "Content-Type: multipart/form-data; boundary=" + edge
}

func TestImport(t *testing.T) {
	t.Parallel()
	l := start(t)
	rows := `{"id":1,"mail":"ada@example.com","name":"Ada","tier":"gold"}` + "\n" + `{"id":2,"mail":"not an address"}` + "\n" + "no json\n" + `{"id":3,"mail":"bob@example.com"}` + "\n"
	body, header := withMapping(crmMapping, rows)
	first := l.want(t, 201, "POST", "/v1/imports", body, header, "Idempotency-Key: one")
	job := "/v1/imports/" + first.text(t, "importId")
	for member, want := range map[string]any{"state": "done", "source": "crm", "rows": 4.0, "created": 2.0, "failed": 2.0} {
		if got := first.member(t, member); got != want {
			t.Errorf("%s = %v, want %v", member, got, want)
		}
	}
	if first.header.Get("Location") != job {
		t.Errorf("Location %q", first.header.Get("Location"))
	}
	for _, path := range []string{job, "/v1/imports"} {
		if got := l.want(t, 200, "GET", path, ""); !strings.Contains(string(got.body), first.text(t, "importId")) {
			t.Errorf("%s: %s", path, got.body)
		}
	}
	failed := l.want(t, 200, "GET", job+"/rows?outcome=FAILED&limit=1", "")
	if failed.member(t, "rows.0.row") != 2.0 || failed.text(t, "rows.0.faults.0.pointer") == "" || failed.text(t, "next") != "2" {
		t.Errorf("failed rows: %s", failed.body)
	}
	if rest := l.want(t, 200, "GET", job+"/rows?after=2&outcome=FAILED", ""); rest.member(t, "rows.0.row") != 3.0 || rest.member(t, "next") != nil {
		t.Errorf("failed rows: %s", rest.body)
	}
	// Repeating the request returns the first outcome; a new job changes nothing.
	if again := l.want(t, 201, "POST", "/v1/imports", body, header, "Idempotency-Key: one"); string(again.body) != string(first.body) {
		t.Errorf("repeated: %s, first %s", again.body, first.body)
	}
	second := l.want(t, 201, "POST", "/v1/imports", body, header)
	if second.member(t, "unchanged") != 2.0 || second.member(t, "events") != 0.0 {
		t.Errorf("again: %s", second.body)
	}
	other, _ := withMapping(crmMapping+"origin: created\n", rows)
	l.refused(t, domain.CodeIdempotencyKeyReused, "POST", "/v1/imports", other, header, "Idempotency-Key: one")
	// The jobs' files contain neither imported data nor the keys of rows.
	files, err := filepath.Glob(filepath.Join(l.ImportDir, "*"))
	check(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		check(t, err)
		for _, personal := range []string{"ada@", "Ada", "not an address", "gold", `"key"`} {
			if strings.Contains(string(text), personal) {
				t.Errorf("%s contains %q", filepath.Base(file), personal)
			}
		}
	}
	history := l.want(t, 200, "GET", "/v1/accounts/"+l.want(t, 200, "POST", "/v1/lookup", `{"identifier":"ada@example.com"}`).text(t, "sub")+"/events", "")
	if history.text(t, "events.0.actor.id") != "admin" {
		t.Errorf("the actor is not the caller: %s", history.body)
	}
}

func TestImportRefused(t *testing.T) {
	t.Parallel()
	l := start(t, func(c *Config) { c.ImportLimit = 10_000 })
	rows := `{"id":1,"mail":"ada@example.com"}` + "\n"
	good, header := withMapping(crmMapping, rows)
	bad, _ := withMapping("source: crm\nnonsense: 1\n", rows)
	groups, _ := withMapping(crmMapping+"groups: {members: /groups, groupType: X}\n", rows)
	big, _ := withMapping(crmMapping, strings.Repeat(rows, 1000))
	for _, tt := range []struct {
		code       domain.Code
		path, body string
		headers    []string
	}{
		{codeImportRefused, "/v1/imports", bad, []string{header}},
		{codeImportRefused, "/v1/imports", groups, []string{header}},
		{codeBodyTooLarge, "/v1/imports", big, []string{header}},
		{domain.CodeInvalidRequest, "/v1/imports?mapping=crm", good, []string{header}},
		{domain.CodeInvalidRequest, "/v1/imports?mapping=unheard-of", rows, []string{"Content-Type: application/x-ndjson"}},
		{domain.CodeInvalidRequest, "/v1/imports?mapping=../../secret", rows, []string{"Content-Type: application/x-ndjson"}},
		{codeUnsupportedMediaType, "/v1/imports?mapping=people-208", rows, []string{"Content-Type: text/plain"}},
		{codeImportRefused, "/v1/imports?mapping=people-208", rows, []string{"Content-Type: application/x-ndjson"}}, // a mapping for JSON
		{codeImportRefused, "/v1/imports?mapping=people-208", `[{"id":1`, []string{"Content-Type: application/json"}},
		{codeForbidden, "/v1/imports", good, []string{header, "Authorization: Bearer " + l.key(t, "reader", scopeAccountsRead)}},
	} {
		l.refused(t, tt.code, "POST", tt.path, tt.body, tt.headers...)
	}
	l.refused(t, codeImportNotFound, "GET", "/v1/imports/0190a1b2-0000-7000-8000-000000000001", "")
}

// TestImportGoesOn interrupts imports by closing the connection and by stopping
// the server. Sending the request again resumes them, and no row is imported
// twice.
func TestImportGoesOn(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	l := f.open(t)
	const all = 400
	line := func(n int) string { return fmt.Sprintf(`{"id":%d,"mail":"p%d@example.com"}`+"\n", n, n) }
	var rows strings.Builder
	for n := range all {
		rows.WriteString(line(n))
	}
	whole, header := withMapping(crmMapping, rows.String())
	kind := strings.TrimPrefix(header, "Content-Type: ")
	// Sends a part of the input, and breaks the connection after a number of rows.
	cut := func(bytes, rows int) {
		r, w := io.Pipe()
		request, err := http.NewRequest("POST", l.url+"/v1/imports", r)
		check(t, err)
		request.Header.Set("Authorization", "Bearer "+l.admin)
		request.Header.Set("Content-Type", kind)
		request.Header.Set("Idempotency-Key", "long")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if res, err := http.DefaultClient.Do(request); err == nil {
				res.Body.Close()
			}
		}()
		go io.WriteString(w, whole[:bytes])
		for done := 0.0; done < float64(rows); {
			done, _ = l.want(t, 200, "GET", "/v1/imports", "").member(t, "imports.0.rows").(float64)
		}
		w.CloseWithError(io.ErrUnexpectedEOF)
		<-ended
	}
	state := func(want string) response {
		t.Helper()
		for {
			got := l.want(t, 200, "GET", "/v1/imports", "")
			if got.text(t, "imports.0.state") != importRunning { // the server notices with a delay
				if got.text(t, "imports.0.state") != want {
					t.Fatalf("state of %s, want %s", got.body, want)
				}
				return got
			}
		}
	}
	cut(len(whole)/3, all/4)
	state(importInterrupted)
	cut(2*len(whole)/3, all/2)
	before := state(importInterrupted).member(t, "imports.0.rows").(float64)
	if before < all/2 || before >= all {
		t.Fatalf("%v rows after the interruption", before)
	}
	// If a job's file says running, its process ended during the import.
	id := l.want(t, 200, "GET", "/v1/imports", "").text(t, "imports.0.importId")
	l.close()
	file := filepath.Join(l.ImportDir, id+jobSuffix)
	text, err := os.ReadFile(file)
	check(t, err)
	check(t, os.WriteFile(file, []byte(strings.Replace(string(text), `"interrupted"`, `"running"`, 1)), 0o600))
	l = f.open(t)
	defer l.close()
	state(importInterrupted)
	done := l.want(t, 201, "POST", "/v1/imports", whole, header, "Idempotency-Key: long")
	for member, want := range map[string]any{"importId": id, "state": "done", "rows": float64(all), "created": float64(all), "events": float64(all)} {
		if got := done.member(t, member); got != want {
			t.Errorf("%s = %v, want %v", member, got, want)
		}
	}
	if sums := l.want(t, 200, "GET", "/v1/reconciliation?digits=1", ""); sums.member(t, "accounts") != float64(all) {
		t.Errorf("the ledger has %v accounts, want %d", sums.member(t, "accounts"), all)
	}
}

// TestImportCancelled cancels an import while its client is sending nothing.
func TestImportCancelled(t *testing.T) {
	t.Parallel()
	l := start(t)
	body, header := withMapping(crmMapping, strings.Repeat(`{"id":1,"mail":"ada@example.com"}`+"\n", 3))
	r, w := io.Pipe()
	defer w.Close()
	request, err := http.NewRequest("POST", l.url+"/v1/imports", r)
	check(t, err)
	request.Header.Set("Authorization", "Bearer "+l.admin)
	request.Header.Set("Content-Type", strings.TrimPrefix(header, "Content-Type: "))
	request.Header.Set("Expect", "100-continue")
	answered := make(chan int, 1)
	go func() {
		res, err := http.DefaultClient.Do(request)
		if err != nil {
			answered <- 0
			return
		}
		res.Body.Close()
		answered <- res.StatusCode
	}()
	go io.WriteString(w, body[:len(body)-60])
	var id string
	for id == "" {
		id = l.want(t, 200, "GET", "/v1/imports", "").text(t, "imports.0.importId")
	}
	l.refused(t, codeTooManyJobs, "POST", "/v1/imports", body, header)
	l.want(t, 200, "DELETE", "/v1/imports/"+id, "")
	if status := <-answered; status != 201 {
		t.Errorf("the client got status %d", status)
	}
	if got := l.want(t, 200, "GET", "/v1/imports/"+id, ""); got.text(t, "state") != importCancelled {
		t.Errorf("state %s", got.body)
	}
}
