package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/testdata/imports"
)

var (
	keepName    = flag.String("keep", "", "name under which TestKeepDirectory stores a data directory")
	keepProgram = flag.String("program", "", "program that writes the data directory for TestKeepDirectory")
)

// directories contains an archive for each data directory that an older version
// wrote: data/ and kept.json.
const directories = "../../testdata/directories"

// Limits of an archive, because it stays in the repository forever.
const (
	keptPeople = 60
	keptLimit  = 250 << 10
)

// kept describes a data directory; the version that wrote it made the description.
type kept struct {
	Head     int64                     `json:"head"`     // position of its last event
	Accounts map[string]jsontext.Value `json:"accounts"` // by sub; null: erased
}

// TestUpgrade starts the current server on data directories of older versions: the
// log verifies, every account is unchanged, the views equal a rebuild, accounts
// can be changed, and deliveries continue where they stopped.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	archives, err := filepath.Glob(directories + "/*.tar.gz")
	if err != nil || len(archives) < 3 {
		t.Fatalf("there are only %d directories: %v", len(archives), err)
	}
	for _, archive := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(archive), ".tar.gz"), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			was := unpack(t, archive, dir)
			upgrade(t, filepath.Join(dir, "data"), was)
		})
	}
}

func upgrade(t *testing.T, data string, was kept) {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	mustRun(t, "verify", "--data", data)
	p := startServer(t, data, "--webhook-allow", "127.0.0.0/8,::1/128")
	ask := func(method, path, body string, want int) []byte {
		t.Helper()
		response, text, err := p.do(ctx, method, path, body)
		if err != nil || response.StatusCode != want {
			t.Fatalf("%s %s: %v, %v, want %d: %s", method, path, response, err, want, text)
		}
		return text
	}
	if len(was.Accounts) < keptPeople || was.Head < keptPeople {
		t.Fatalf("the directory has %d accounts, %d events", len(was.Accounts), was.Head)
	}
	for i, sub := range slices.Sorted(maps.Keys(was.Accounts)) {
		path := "/v1/accounts/" + sub
		if i == 0 { // the server may have to rebuild the views
			path += fmt.Sprintf("?min_position=%d&wait=30", was.Head)
		}
		if string(was.Accounts[sub]) == "null" {
			ask("GET", path, "", http.StatusGone)
			continue
		}
		if diff := missing(decoded(t, was.Accounts[sub]), decoded(t, ask("GET", path, "", http.StatusOK)), ""); diff != "" {
			t.Errorf("account %s: %s", sub, diff)
		}
	}
	mustRun(t, "check", "--data", data, "--views")

	// Deliveries continue with new events and repeat none.
	received := make(chan string, 16)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if position, err := strconv.ParseInt(r.Header.Get("Ledger-Position"), 10, 64); err != nil || position <= was.Head {
			t.Errorf("position %d is delivered again: %v", position, err)
		}
		received <- string(body)
	}))
	defer receiver.Close()
	var hooks struct {
		Webhooks []struct {
			WebhookID string `json:"webhookId"`
		} `json:"webhooks"`
	}
	if err := json.Unmarshal(ask("GET", "/v1/webhooks", "", http.StatusOK), &hooks); err != nil || len(hooks.Webhooks) == 0 {
		t.Fatalf("no webhooks: %v", err)
	}
	for _, h := range hooks.Webhooks {
		ask("PATCH", "/v1/webhooks/"+h.WebhookID, fmt.Sprintf(`{"url":%q}`, receiver.URL), http.StatusOK)
	}
	sub := p.create(t, "upgraded@example.com")
	for range hooks.Webhooks {
		select {
		case body := <-received:
			if !strings.Contains(body, `"USER_CREATED"`) || !strings.Contains(body, sub) {
				t.Errorf("another event is delivered: %s", body)
			}
		case <-ctx.Done():
			t.Fatalf("nothing is delivered\n%s", p.log)
		}
	}
	// An old account can be changed.
	ask("PATCH", "/v1/accounts/"+first(t, was), `{"identity":{"nickname":"upgraded"}}`, http.StatusOK)
	if err := p.stop(ctx); err != nil {
		t.Fatalf("the server ended with %v\n%s", err, p.log)
	}
	var v verified
	if err := json.Unmarshal([]byte(mustRun(t, "verify", "--data", data, "--json")), &v); err != nil || v.Events <= was.Head || v.Covered != v.Events {
		t.Errorf("%d events after %d, %d of them covered by a checkpoint: %v", v.Events, was.Head, v.Covered, err)
	}
}

// first returns an account of the directory that has one identity.
func first(t *testing.T, was kept) string {
	t.Helper()
	for _, sub := range slices.Sorted(maps.Keys(was.Accounts)) {
		var a domain.Account
		if err := json.Unmarshal(was.Accounts[sub], &a); err == nil && a.Status == domain.StatusVerified && len(a.Identities) == 1 {
			return sub
		}
	}
	t.Fatal("no account has one identity")
	return ""
}

// missing returns the parts of was that are not in is, or "". is may have more
// members.
func missing(was, is any, path string) string {
	switch was := was.(type) {
	case map[string]any:
		members, ok := is.(map[string]any)
		if !ok {
			return path + " is no object any more"
		}
		for name, value := range was {
			if _, there := members[name]; !there {
				return path + "/" + name + " is gone"
			}
			if diff := missing(value, members[name], path+"/"+name); diff != "" {
				return diff
			}
		}
	case []any:
		elements, ok := is.([]any)
		if !ok || len(elements) != len(was) {
			return fmt.Sprintf("%s is %v, was %v", path, is, was)
		}
		for i := range was {
			if diff := missing(was[i], elements[i], fmt.Sprintf("%s/%d", path, i)); diff != "" {
				return diff
			}
		}
	default:
		if was != is {
			return fmt.Sprintf("%s is %v, was %v", path, is, was)
		}
	}
	return ""
}

func decoded(t *testing.T, text []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestKeepDirectory stores a data directory written by a version of the program,
// and the accounts as that version shows them. It is not a test; the target
// directory of the Makefile runs it.
func TestKeepDirectory(t *testing.T) {
	if *keepName == "" {
		t.Skip("-keep is not set")
	}
	dir := t.TempDir()
	data, people := filepath.Join(dir, "data"), filepath.Join(dir, "people.json")
	var rows []jsontext.Value
	if err := json.Unmarshal(imports.People, &rows); err != nil {
		t.Fatal(err)
	}
	some, err := json.Marshal(rows[:keptPeople])
	if err == nil {
		err = os.WriteFile(people, some, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	imported := exec.CommandContext(t.Context(), *keepProgram, "import", "--data", data, "--mapping", "../../testdata/imports/people-208.yaml", people)
	if out, err := imported.CombinedOutput(); err != nil {
		t.Fatalf("import: %v\n%s", err, out)
	}
	p, stdout, err := spawnProgram(*keepProgram, "", data, "--webhook-allow", "127.0.0.0/8,::1/128")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if err := p.ready(stdout, data); err != nil {
		t.Fatal(err)
	}
	live(t, p)
	accounts := accountsOf(t, p)
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	pack(t, filepath.Join(directories, *keepName+".tar.gz"), data, accounts)
}

// live uses all features of a ledger. It skips those that its version does not
// have, which answers with 404 or 405. Add the features of each release.
func live(t *testing.T, p *process) {
	received := make(chan string, 1<<10)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		received <- string(body)
	}))
	defer receiver.Close()
	ask := func(method, path, body string) (sub string) {
		t.Helper()
		response, text, err := p.do(t.Context(), method, path, body)
		switch {
		case err != nil:
			t.Fatal(err)
		case response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusMethodNotAllowed:
			t.Logf("not supported: %s %s", method, path)
		case response.StatusCode >= 300:
			t.Fatalf("%s %s: %s: %s", method, path, response.Status, text)
		}
		var account struct {
			Sub string `json:"sub"`
		}
		json.Unmarshal(text, &account)
		return account.Sub
	}
	ask("POST", "/v1/webhooks", fmt.Sprintf(`{"url":%q,"events":["USER_*"],"format":"standard","payload":"full"}`, receiver.URL))
	ask("PUT", "/v1/fields/tier", `{"dataType":"SELECT","options":["gold","silver"],"searchable":true}`)
	ask("PUT", "/v1/group-types/OFFICE", `{"roleMode":"any_roles"}`)
	ask("PUT", "/v1/groups/BERLIN", `{"groupName":"Berlin","groupType":"OFFICE"}`)
	ask("PUT", "/v1/consents/newsletter", `{"name":"Newsletter","purpose":"marketing","versions":[{"version":1,"text":{"en":"Send me news."}}]}`)
	ask("PUT", "/v1/schedule-setups/reminder", `{"kind":"reminder","offsetSeconds":864000000,"reminderNo":1}`)
	ask("POST", "/v1/api-keys", `{"name":"crm","scopes":["accounts:read"]}`)
	emily := "/v1/accounts/" + ask("POST", "/v1/lookup", fmt.Sprintf(`{"identifier":%q}`, demoEmail))
	ask("POST", emily+"/identities", `{"provider":"google","providerUserId":"1095","email":"emily.johnson@gmail.com","email_verified":true}`)
	ask("PUT", emily+"/status", `{"userStatus":"DECLINED","reason":"chargeback"}`)
	ask("PUT", emily+"/status", `{"userStatus":"VERIFIED"}`)
	ask("PATCH", emily, fmt.Sprintf(`{"identity":{"identityId":%q,"nickname":"Em"}}`, firstIdentity(t, p, emily)))
	ask("PATCH", emily+"/custom-fields", `{"tier":"gold"}`)
	ask("PUT", emily+"/groups/BERLIN", `{"roles":["USER"]}`)
	ask("POST", emily+"/consents", `{"consentId":"newsletter","version":1,"status":"accepted","channel":"web"}`)
	ask("POST", emily+"/schedules", `{"kind":"reminder","dueTime":"2100-01-01T00:00:00Z"}`)
	ask("POST", "/v1/logins", `{"identifier":"emily.johnson@gmail.com","provider":"google","client":"web"}`)
	for i, end := range []string{"merge", "unmerge", "erase", "delete"} {
		sub := ask("POST", "/v1/accounts", fmt.Sprintf(`{"origin":"registered","userStatus":"VERIFIED","customFields":{"tier":"silver"},
			"identities":[{"provider":"self","given_name":"Emily","email":"emily.%d@work.example"}]}`, i))
		switch end {
		case "merge", "unmerge":
			ask("POST", emily+"/merge", fmt.Sprintf(`{"from":%q}`, sub))
			if end == "unmerge" {
				ask("POST", emily+"/unmerge", fmt.Sprintf(`{"sub":%q}`, sub))
			}
		case "erase":
			ask("DELETE", "/v1/accounts/"+sub+"?immediate=true", "")
		case "delete":
			ask("DELETE", "/v1/accounts/"+sub+"?grace=87600h", "")
		}
	}
	last := p.create(t, "last@example.com")
	for {
		select {
		case body := <-received:
			if strings.Contains(body, last) {
				return // events of an account are ordered, and no delivery fails
			}
		case <-time.After(timeout):
			t.Fatalf("the receiver did not get the last account\n%s", p.log)
		}
	}
}

// firstIdentity returns the id of an account's first identity.
func firstIdentity(t *testing.T, p *process, path string) string {
	t.Helper()
	_, text, err := p.do(t.Context(), "GET", path, "")
	var account domain.Account
	if err == nil {
		err = json.Unmarshal(text, &account)
	}
	if err != nil || len(account.Identities) == 0 {
		t.Fatalf("%s: %v", text, err)
	}
	return account.Identities[0].IdentityID
}

// accountsOf returns all accounts of a server as the API shows them. It finds them
// in the feed, once the views have every event: until then a GET answers 404.
func accountsOf(t *testing.T, p *process) kept {
	t.Helper()
	waitUntilReady(t, p)
	is := kept{Accounts: map[string]jsontext.Value{}}
	var page struct {
		Events []struct {
			Sub string `json:"sub"`
		} `json:"events"`
		Next string `json:"next"`
		More bool   `json:"more"`
	}
	for after := "0"; ; after = page.Next {
		response, text, err := p.do(t.Context(), "GET", "/v1/events?limit=1000&after="+after, "")
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("feed: %v, %v: %s", response, err, text)
		}
		page.Events, page.More = nil, false
		if err := json.Unmarshal(text, &page); err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			if e.Sub != "" {
				is.Accounts[e.Sub] = nil
			}
		}
		if len(page.Events) == 0 && !page.More {
			break
		}
	}
	for sub := range is.Accounts {
		response, text, err := p.do(t.Context(), "GET", "/v1/accounts/"+sub, "")
		switch {
		case err != nil:
			t.Fatal(err)
		case response.StatusCode == http.StatusGone:
			text = []byte("null")
		case response.StatusCode != http.StatusOK:
			t.Fatalf("account: %s: %s", response.Status, text)
		default:
			if is.Head, err = strconv.ParseInt(response.Header.Get("Ledger-Position"), 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		is.Accounts[sub] = bytes.TrimSpace(text)
	}
	return is
}

// waitUntilReady waits until the views have the events that the log had at the
// start.
func waitUntilReady(t *testing.T, p *process) {
	t.Helper()
	for deadline := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		response, text, err := p.do(t.Context(), "GET", "/readyz", "")
		if err == nil && response.StatusCode == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not become ready: %v, %v: %s\n%s", response, err, text, p.log)
		}
	}
}

// pack returns the archive of a data directory.
func pack(t *testing.T, archive, data string, is kept) {
	t.Helper()
	var packed bytes.Buffer
	squeeze, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	files := tar.NewWriter(squeeze)
	add := func(name string, text []byte) {
		t.Helper()
		if err := files.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	say, err := json.Marshal(is, json.Deterministic(true), jsontext.Multiline(true))
	if err != nil {
		t.Fatal(err)
	}
	add("kept.json", say)
	entries, err := os.ReadDir(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(data, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		add("data/"+e.Name(), text)
	}
	if err := errors.Join(files.Close(), squeeze.Close()); err != nil {
		t.Fatal(err)
	}
	if packed.Len() > keptLimit {
		t.Fatalf("the archive has %d bytes, more than %d", packed.Len(), keptLimit)
	}
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(archive, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// unpack extracts an archive made by pack.
func unpack(t *testing.T, archive, dir string) (was kept) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stretch, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	for files := tar.NewReader(stretch); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return was
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(files)
		if err == nil && header.Name == "kept.json" {
			err = json.Unmarshal(text, &was)
		} else if err == nil {
			err = os.WriteFile(filepath.Join(dir, header.Name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
