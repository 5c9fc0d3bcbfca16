package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/note"

	"accountledger/cmd/accountledger/cli"
)

// exitUncovered is verify's exit code for a log that is whole but that no
// checkpoint covers to its end.
const exitUncovered = 9

// personal is part of every name and address in the ledgers of TestTamper, so that
// a message that contains it contains personal data.
const personal = "quimby"

// TestTamper attacks copies of data directories from outside: it runs SQL on the
// files, replaces files by older ones and kills the server. It does not use the
// program's own functions to forge what it writes.
func TestTamper(t *testing.T) {
	t.Parallel()
	s := newSnapshots(t)
	t.Run("T1", s.unexpectedEvent)
	t.Run("T2", s.lostLog)
	t.Run("T3", s.rollBack)
	t.Run("T4", s.lostKeys)
	t.Run("T6", s.lostClaim)
	t.Run("T7", s.rewrittenLog)
	t.Run("T8", s.changedBeforeSigning)
	t.Run("T16", s.smallParts)
	t.Run("T17", s.unaskedErasure)
	t.Run("T18", s.changedDelivery)
	t.Run("T19", s.rewrittenEvent)
	t.Run("T20", s.rebuildFromRewritten)
}

// snapshots are the data directories that the attacks copy, made by one ledger.
type snapshots struct {
	older      string // stopped before most accounts were imported
	base       string // stopped at the end
	killed     string // base, then changed by a server that was killed
	other      string // another ledger's, stopped
	look       string // base, to read it: a copy of base must not catch a reader's files
	keysNoLast string // a keys.db of base that lacks only the secret of the last webhook
	head       int64  // position of the last event of base
	webhook    string // id
	receiver   *hits  // where the webhook is registered
	reader     apiKey // with the scope accounts:read
	demoted    apiKey // had the scope ledger:admin, has accounts:read
	victim     string // sub of a live account
	planned    string // sub of an account whose deletion is planned
	erased     string // sub
}

type apiKey struct {
	KeyID string `json:"keyId"`
	Key   string `json:"key"`
}

// hits is a receiver that counts requests and keeps their bodies.
type hits struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []string
}

func newHits(t *testing.T) *hits {
	h := new(hits)
	h.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.bodies = append(h.bodies, string(body))
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hits) got(text string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.bodies, func(b string) bool { return strings.Contains(b, text) })
}

func address(name string) string { return name + "@" + personal + ".example" }

const loopback = "127.0.0.0/8,::1/128"

// newSnapshots makes the ledgers. What the attacks rewrite is at the start of the
// log, in its first full tile.
func newSnapshots(t *testing.T) *snapshots {
	dir := t.TempDir()
	s := &snapshots{receiver: newHits(t)}
	data := filepath.Join(dir, "data")
	p := startServer(t, data, "--webhook-allow", loopback)
	account := func(name, more string) (sub string) {
		t.Helper()
		return member(t, mustDo(t, p, "POST", "/v1/accounts", fmt.Sprintf(
			`{"origin":"created","userStatus":"VERIFIED","identities":[{"provider":"self","given_name":"Ada","family_name":%q,"email":%q}]%s}`,
			personal, address(name), more)), "sub")
	}
	key := func(name, scopes string) (k apiKey) {
		t.Helper()
		body := mustDo(t, p, "POST", "/v1/api-keys", fmt.Sprintf(`{"name":%q,"scopes":[%s]}`, name, scopes))
		if err := json.Unmarshal([]byte(body), &k); err != nil {
			t.Fatal(err)
		}
		return k
	}
	s.reader = key("reader", `"accounts:read"`)
	key("writer", `"accounts:read","accounts:write"`)
	s.demoted = key("demoted", `"ledger:admin"`)
	mustDo(t, p, "PATCH", "/v1/api-keys/"+s.demoted.KeyID, `{"scopes":["accounts:read"]}`)
	mustDo(t, p, "PUT", "/v1/fields/tier", `{"dataType":"SELECT","options":["gold","silver"],"searchable":true}`)
	mustDo(t, p, "PUT", "/v1/group-types/OFFICE", `{"roleMode":"any_roles"}`)
	mustDo(t, p, "PUT", "/v1/groups/BERLIN", `{"groupName":"Berlin","groupType":"OFFICE"}`)
	s.webhook = member(t, mustDo(t, p, "POST", "/v1/webhooks", fmt.Sprintf(`{"url":%q,"events":["USER_STATUS_CHANGED"]}`, s.receiver.URL)), "webhookId")
	s.victim = account("victim", `,"customFields":{"tier":"gold"}`)
	mustDo(t, p, "PUT", "/v1/accounts/"+s.victim+"/groups/BERLIN", `{"roles":["USER"]}`)
	s.planned = account("planned", "")
	mustDo(t, p, "DELETE", "/v1/accounts/"+s.planned+"?grace=87600h", "")
	mustDo(t, p, "POST", "/v1/accounts/"+account("survivor", "")+"/merge", fmt.Sprintf(`{"from":%q}`, account("merged", "")))
	s.erased = account("erased", "")
	mustDo(t, p, "DELETE", "/v1/accounts/"+s.erased+"?immediate=true", "")
	stop := func() {
		t.Helper()
		waitUntilReady(t, p)
		if err := p.stop(t.Context()); err != nil {
			t.Fatalf("the server ended with %v\n%s", err, p.log)
		}
	}
	for deadline := time.Now().Add(timeout); !strings.Contains(mustDo(t, p, "GET", "/v1/accounts/"+s.erased+"/deletion", ""), "completedTime"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the erasure is not completed\n%s", p.log)
		}
	}
	stop()
	s.older = copied(t, data)

	importAccounts(t, data, 600, cli.ExitOK)
	p = startServer(t, data, "--webhook-allow", loopback)
	account("late", "")
	stop()
	s.keysNoLast = filepath.Join(copied(t, data), keysFile)
	p = startServer(t, data, "--webhook-allow", loopback)
	mustDo(t, p, "POST", "/v1/webhooks", fmt.Sprintf(`{"url":%q,"events":["USER_DELETED"]}`, s.receiver.URL))
	stop()
	s.base, s.look = data, copied(t, data)
	s.head = head(t, s.look)

	s.killed = copied(t, data)
	p = startServer(t, s.killed, "--webhook-allow", loopback)
	account("killed", "")
	key("killed", `"accounts:read"`)
	waitUntilReady(t, p)
	p.kill()
	for _, name := range []string{logFile, keysFile} {
		if info, err := os.Stat(filepath.Join(s.killed, name+"-wal")); err != nil || info.Size() == 0 {
			t.Fatalf("a killed server leaves no -wal of %s: %v", name, err)
		}
	}

	s.other = filepath.Join(dir, "other")
	p = startServer(t, s.other)
	account("other", "")
	stop()
	return s
}

// importAccounts imports n accounts into the ledger in data and checks the exit
// code.
func importAccounts(t *testing.T, data string, n, want int) (output string) {
	t.Helper()
	dir := t.TempDir()
	mapping, records := filepath.Join(dir, "mapping.yaml"), filepath.Join(dir, "records.json")
	var rows []string
	for i := range n {
		rows = append(rows, fmt.Sprintf(`{"id":"%x","email":%q}`, rand.Text(), address(fmt.Sprintf("imported.%d.%s", i, strings.ToLower(rand.Text())))))
	}
	if err := errors.Join(
		os.WriteFile(mapping, []byte("source: records\nformat: json\nkey: /id\nidentities:\n  - provider: self\n    email: /email\n"), 0o600),
		os.WriteFile(records, []byte("["+strings.Join(rows, ",\n")+"]"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := accountledger(t, "import", "--data", data, "--mapping", mapping, records)
	if code != want {
		t.Errorf("import: exit code %d, want %d\n%s%s", code, want, stdout, stderr)
	}
	return stdout + stderr
}

// member returns a string member of a JSON object.
func member(t *testing.T, text, name string) string {
	t.Helper()
	object, ok := decoded(t, []byte(text)).(map[string]any)
	value, _ := object[name].(string)
	if !ok || value == "" {
		t.Fatalf("%s has no member %s", text, name)
	}
	return value
}

// copied returns a copy of a data directory.
func copied(t *testing.T, data string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	if err := errors.Join(os.CopyFS(dir, os.DirFS(data)), os.Chmod(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, name := range list(t, dir) {
		if err := os.Chmod(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// putFile replaces a database in data by the one at path, without its -wal.
func putFile(t *testing.T, data, name, path string) {
	t.Helper()
	removeFiles(t, data, name, name+"-wal", name+"-shm")
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(filepath.Join(data, name), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// removeFiles removes files from data, if they exist.
func removeFiles(t *testing.T, data string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(data, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// openDB opens a database of a data directory for an attacker, or for a look at it
// beside a server.
func openDB(t *testing.T, data, name string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(data, name)+"?_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

// execute runs statements on a database without its triggers.
func execute(t *testing.T, data, name string, statements ...string) {
	t.Helper()
	db := openDB(t, data, name)
	defer db.Close()
	dropTriggers(t, db)
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// keepWAL runs f and leaves log.db and its -wal as they are after it, although
// SQLite merges a -wal into the file when the last connection closes.
func keepWAL(t *testing.T, data string, f func()) {
	t.Helper()
	holder := openDB(t, data, logFile)
	column[int64](t, holder, `SELECT count(*) FROM meta`)
	f()
	files := map[string][]byte{}
	for _, name := range []string{logFile, logFile + "-wal"} {
		text, err := os.ReadFile(filepath.Join(data, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = text
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	removeFiles(t, data, logFile+"-shm")
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(data, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func dropTriggers(t *testing.T, db *sql.DB) {
	t.Helper()
	for _, name := range column[string](t, db, `SELECT name FROM sqlite_schema WHERE type = 'trigger'`) {
		if _, err := db.ExecContext(t.Context(), `DROP TRIGGER `+name); err != nil {
			t.Fatal(err)
		}
	}
}

// column returns the only column of a query.
func column[T any](t *testing.T, db *sql.DB, query string, args ...any) (all []T) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		var value T
		if err := rows.Scan(&value); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		all = append(all, value)
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return all
}

// one returns the only value of a query on a database of data.
func one[T any](t *testing.T, data, name, query string, args ...any) T {
	t.Helper()
	db := openDB(t, data, name)
	defer db.Close()
	all := column[T](t, db, query, args...)
	if len(all) != 1 {
		t.Fatalf("%s: %d rows", query, len(all))
	}
	return all[0]
}

func head(t *testing.T, data string) int64 {
	t.Helper()
	return one[int64](t, data, logFile, `SELECT max(position) FROM events`)
}

// eventAt returns the position of the only event of a type in a stream whose clear
// part contains a text.
func eventAt(t *testing.T, data, stream, typ, text string) int64 {
	t.Helper()
	return one[int64](t, data, logFile, `SELECT position FROM events JOIN streams ON num = stream
		WHERE name = ? AND type = ? AND instr(CAST(clear AS TEXT), ?) > 0`, stream, typ, text)
}

// The attacker's code follows. It computes hashes from the documented formats, the
// leaf AL1 and the tree of RFC 6962, and not with the program's functions.

// forged is a row of events, with the name of its stream.
type forged struct {
	position, stream, revision, time int64
	name, typ, actor                 string
	id, clear                        []byte
	prev, kid, sealedHash            []byte // nil: NULL
}

// leaf returns the row's leaf hash, the SHA-256 of a zero byte and its AL1 encoding.
func (f forged) leaf() []byte {
	b := []byte("\x00AL1\x00\x00")
	if f.kid != nil {
		b[5] = 1
	}
	text := func(s string) { b = append(append(b, byte(len(s))), s...) }
	b = append(b, f.id...)
	text(f.name)
	b = binary.BigEndian.AppendUint64(b, uint64(f.revision))
	if f.prev == nil {
		b = append(b, make([]byte, 32)...)
	}
	b = append(b, f.prev...)
	b = binary.BigEndian.AppendUint64(b, uint64(f.time))
	text(f.typ)
	text(f.actor)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(f.clear))), f.clear...)
	b = append(append(b, f.kid...), f.sealedHash...)
	hash := sha256.Sum256(b)
	return hash[:]
}

// interior returns the hash of a node of the tree that has two children.
func interior(left, right []byte) []byte {
	hash := sha256.Sum256(slices.Concat([]byte{1}, left, right))
	return hash[:]
}

// readForged returns the rows of events that satisfy a condition, with their leaf
// hashes, in the order of their positions.
func readForged(t *testing.T, db *sql.DB, condition string, args ...any) (all []forged, leaves [][]byte) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT position, stream, name, revision, time, id, type, actor, clear, prev, kid, sealed_hash, leaf_hash
		FROM events JOIN streams ON num = stream WHERE `+condition+` ORDER BY position`, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var f forged
		var leaf []byte
		if err := rows.Scan(&f.position, &f.stream, &f.name, &f.revision, &f.time, &f.id, &f.typ, &f.actor, &f.clear, &f.prev, &f.kid, &f.sealedHash, &leaf); err != nil {
			t.Fatal(err)
		}
		all, leaves = append(all, f), append(leaves, leaf)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all, leaves
}

// forge appends an event with data to a stream as the next row of the log in
// directory, with correct hashes. It needs no key and drops no trigger.
func forge(t *testing.T, directory, stream, typ, data string) (position int64) {
	t.Helper()
	db := openDB(t, directory, logFile)
	defer db.Close()
	last, leaves := readForged(t, db, `name = ? AND revision = (SELECT max(revision) FROM events e WHERE e.stream = events.stream)`, stream)
	if len(last) != 1 {
		t.Fatalf("%s has no events", stream)
	}
	id := make([]byte, 16)
	rand.Read(id)
	f := forged{
		position: column[int64](t, db, `SELECT max(position) + 1 FROM events`)[0], time: column[int64](t, db, `SELECT max(time) + 1 FROM events`)[0],
		stream: last[0].stream, name: stream, revision: last[0].revision + 1, typ: typ, actor: "api-key:admin", id: id,
		clear: fmt.Appendf(nil, `{"meta":{"actor":{"kind":"api-key","id":"admin"}},"data":%s}`, data), prev: leaves[0],
	}
	if _, err := db.ExecContext(t.Context(), `INSERT INTO events (position, stream, revision, time, id, type, actor, clear, prev, leaf_hash)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, f.position, f.stream, f.revision, f.time, f.id, f.typ, f.actor, f.clear, f.prev, f.leaf()); err != nil {
		t.Fatal(err)
	}
	return f.position
}

// rewrite replaces a text in the clear part of the event at a position, and the
// event's leaf hash if hashed.
func rewrite(t *testing.T, data string, position int64, old, with string, hashed bool) {
	t.Helper()
	db := openDB(t, data, logFile)
	defer db.Close()
	dropTriggers(t, db)
	rows, leaves := readForged(t, db, `position = ?`, position)
	if len(rows) != 1 || !bytes.Equal(rows[0].leaf(), leaves[0]) || !bytes.Contains(rows[0].clear, []byte(old)) {
		t.Fatalf("the event at %d cannot be rewritten: %s", position, rows[0].clear)
	}
	rows[0].clear = bytes.Replace(rows[0].clear, []byte(old), []byte(with), 1)
	leaf := leaves[0]
	if hashed {
		leaf = rows[0].leaf()
	}
	if _, err := db.ExecContext(t.Context(), `UPDATE events SET clear = ?, leaf_hash = ? WHERE position = ?`, rows[0].clear, leaf, position); err != nil {
		t.Fatal(err)
	}
}

// rewriteAll does what rewrite does and then makes every hash in the log agree:
// those of the stream's later events and of the tiles. It deletes the checkpoints.
func rewriteAll(t *testing.T, data string, position int64, old, with string) {
	t.Helper()
	rewrite(t, data, position, old, with, true)
	db := openDB(t, data, logFile)
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	run := func(query string, args ...any) {
		t.Helper()
		if _, err := tx.ExecContext(t.Context(), query, args...); err != nil {
			t.Fatal(err)
		}
	}
	run(`DELETE FROM checkpoints`)
	// The connection is the transaction's, so read through a second one.
	second := openDB(t, data, logFile)
	defer second.Close()
	rows, leaves := readForged(t, second, `true`)
	last := map[string][]byte{}
	for i := range rows {
		f := &rows[i]
		if f.revision > 0 {
			f.prev = last[f.name]
		}
		leaves[i] = f.leaf()
		last[f.name] = leaves[i]
		run(`UPDATE events SET prev = ?, leaf_hash = ? WHERE position = ?`, f.prev, leaves[i], f.position)
	}
	var roots []byte
	for n := 0; (n+1)*256 <= len(leaves); n++ {
		nodes := leaves[n*256:][:256]
		run(`UPDATE tiles SET data = ? WHERE level = 0 AND n = ?`, slices.Concat(nodes...), n)
		for len(nodes) > 1 {
			var above [][]byte
			for i := 0; i < len(nodes); i += 2 {
				above = append(above, interior(nodes[i], nodes[i+1]))
			}
			nodes = above
		}
		roots = append(roots, nodes[0]...)
	}
	run(`UPDATE tiles SET data = ? WHERE level = 1 AND n = 0`, roots)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

// kidOf returns the key id of an account's first event.
func kidOf(t *testing.T, data, sub string) []byte {
	t.Helper()
	return one[[]byte](t, data, logFile, `SELECT kid FROM events JOIN streams ON num = stream WHERE name = ? AND revision = 0`, "account-"+sub)
}

// keyLives reports whether keys.db still has the key of an account.
func keyLives(t *testing.T, data string, kid []byte) bool {
	t.Helper()
	return one[int64](t, data, keysFile, `SELECT ifnull((SELECT length(wrapped) FROM keys WHERE slot = ?), 0)`, int64(binary.BigEndian.Uint64(kid))) > 0
}

// signed returns the size of the last checkpoint, 0 if there is none.
func signed(t *testing.T, data string) int64 {
	t.Helper()
	return one[int64](t, data, logFile, `SELECT ifnull(max(size), 0) FROM checkpoints`)
}

// roots returns the first lines of all checkpoints by size: origin, size and root.
func roots(t *testing.T, data string) map[int64]string {
	t.Helper()
	db := openDB(t, data, logFile)
	defer db.Close()
	all := map[int64]string{}
	for _, msg := range column[[]byte](t, db, `SELECT note FROM checkpoints ORDER BY size`) {
		text, _, _ := strings.Cut(string(msg), "\n\n")
		var size int64
		if _, err := fmt.Sscan(strings.Split(text, "\n")[1], &size); err != nil {
			t.Fatal(err)
		}
		all[size] = text
	}
	return all
}

// content of the databases of a data directory: a digest of each table's rows, by
// file and table. It reads copies, because reading a database can change its -wal.
func databases(t *testing.T, data string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{}
	for _, name := range []string{logFile, keysFile, viewsFile, deliveryFile} {
		info, err := os.Stat(filepath.Join(data, name))
		if err != nil || info.Size() == 0 {
			all[name] = "missing or empty"
			continue
		}
		for _, file := range []string{name, name + "-wal"} {
			text, err := os.ReadFile(filepath.Join(data, file))
			if os.IsNotExist(err) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		db := openDB(t, dir, name)
		for _, table := range column[string](t, db, `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`) {
			rows, err := db.QueryContext(t.Context(), `SELECT * FROM `+table)
			if err != nil {
				t.Fatal(err)
			}
			columns, err := rows.Columns()
			if err != nil {
				t.Fatal(err)
			}
			digest, count := sha256.New(), 0
			values, to := make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				to[i] = &values[i]
			}
			for ; rows.Next(); count++ {
				if err := rows.Scan(to...); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(digest, "%q\n", values)
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				t.Fatal(err)
			}
			all[name+" "+table] = fmt.Sprintf("%d rows %x", count, digest.Sum(nil)[:8])
		}
		db.Close()
	}
	return all
}

// exitOf returns the exit code of a process that ended with err.
func exitOf(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err == nil {
		return 0
	}
	return -1
}

// wantEnd waits until the server ends by itself because the files were altered.
func wantEnd(t *testing.T, p *process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := p.wait(ctx); exitOf(err) != cli.ExitFaults {
		t.Errorf("the server ended with %v, want exit code %d\n%s", err, cli.ExitFaults, p.log)
	}
	wantImpersonal(t, p.log.String())
}

// ended reports whether the server has ended.
func (p *process) hasEnded() bool {
	select {
	case err := <-p.ended:
		p.ended <- err
		return true
	default:
		return false
	}
}

// wantImpersonal checks that a message contains no personal data and no secret.
func wantImpersonal(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{personal, "Ada", "alk_"} {
		if strings.Contains(text, secret) {
			t.Errorf("a message contains %q:\n%s", secret, text)
		}
	}
}

// attack is an alteration of a data directory that the server must not start with.
type attack struct {
	from   string                          // a snapshot
	alter  func(t *testing.T, data string) // nil: nothing
	args   []string                        // further flags of serve
	says   []string                        // what the refusal must contain
	verify []int                           // exit codes that verify may have; empty: 3
	at     []int64                         // positions that verify may name; empty: verify must name none
	check  []int                           // exit codes that check may have; empty: 3
	marked bool                            // the mark of an open log may change
}

// refused checks that no command executes or signs anything in the directory, and
// that verify and check report it. It returns the refusal of serve.
func refused(t *testing.T, a attack) (data, refusal string) {
	t.Helper()
	data = copied(t, a.from)
	if a.alter != nil {
		a.alter(t, data)
	}
	before := databases(t, data)
	wantReported(t, data, a)
	refusal = wantRefused(t, data, a.args, a.says...)
	unchanged := func(by string) {
		t.Helper()
		after := databases(t, data)
		for _, name := range slices.Sorted(maps.Keys(before)) {
			if before[name] != after[name] && !(a.marked && name == logFile+" meta") {
				t.Errorf("%s changed %s from %s to %s", by, name, before[name], cmp.Or(after[name], "nothing"))
			}
		}
	}
	unchanged("serve")
	if t.Failed() {
		return data, refusal // the following writes would only repeat it
	}
	code, stdout, stderr := accountledger(t, "admin-key", "--data", data)
	if code != cli.ExitFaults {
		t.Errorf("admin-key: exit code %d, want %d\n%s%s", code, cli.ExitFaults, stdout, stderr)
	}
	wantImpersonal(t, stdout+stderr)
	importAccounts(t, data, 1, cli.ExitFaults)
	unchanged("admin-key or import")
	return data, refusal
}

// wantRefused checks that serve ends with the exit code for altered files before
// it listens, and that its message contains all texts.
func wantRefused(t *testing.T, data string, args []string, says ...string) string {
	t.Helper()
	p, stdout, err := spawn(data, append([]string{"--webhook-allow", loopback}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if err := p.ready(stdout, data); err == nil {
		// Let it do what it would do, so that the comparison shows it.
		time.Sleep(time.Second)
		p.stop(t.Context())
		t.Errorf("the server starts\n%s", p.log)
		return p.log.String()
	}
	if err := p.wait(t.Context()); exitOf(err) != cli.ExitFaults {
		t.Errorf("the server ended with %v, want exit code %d\n%s", err, cli.ExitFaults, p.log)
	}
	text := p.log.String()
	for _, want := range says {
		if !strings.Contains(text, want) {
			t.Errorf("the refusal does not contain %q:\n%s", want, text)
		}
	}
	wantImpersonal(t, text)
	return text
}

// wantReported checks the exit codes of verify and check, and that verify names
// only the given positions.
func wantReported(t *testing.T, data string, a attack) {
	t.Helper()
	want := a.verify
	if len(want) == 0 {
		want = []int{cli.ExitFaults}
	}
	wantVerify(t, data, want, a.at)
	want = a.check
	if len(want) == 0 {
		want = []int{cli.ExitFaults}
	}
	code, stdout, stderr := accountledger(t, "check", "--data", data)
	if !slices.Contains(want, code) {
		t.Errorf("check: exit code %d, want %v\n%s%s", code, want, stdout, stderr)
	}
	wantImpersonal(t, stdout+stderr)
}

// wantVerify checks verify's exit code, and that it names a position of at and no
// other one. If at is empty, it must name none.
func wantVerify(t *testing.T, data string, codes []int, at []int64, args ...string) {
	t.Helper()
	code, stdout, stderr := accountledger(t, append([]string{"verify", "--data", data, "--json"}, args...)...)
	if !slices.Contains(codes, code) {
		t.Errorf("verify %s: exit code %d, want %v\n%s%s", strings.Join(args, " "), code, codes, stdout, stderr)
		return
	}
	wantImpersonal(t, stdout+stderr)
	var v verified
	if stdout != "" { // otherwise verify refused to read the log
		if err := json.Unmarshal([]byte(stdout), &v); err != nil {
			t.Fatalf("verify: %v\n%s", err, stdout)
		}
	}
	for _, f := range v.Faults {
		// Position 0 and the head stand for the log as a whole.
		if f.Position != 0 && f.Kind != "head" && !slices.Contains(at, int64(f.Position)) {
			t.Errorf("verify names %s, want only %v: %s", f.Name, at, f.Detail)
		}
	}
	if code == cli.ExitFaults && len(at) > 0 && len(v.Faults) == 0 {
		t.Errorf("verify names no position, want one of %v\n%s%s", at, stdout, stderr)
	}
}

// forgeries are events that an attacker appends.
func (s *snapshots) forgeries(t *testing.T) map[string]func(t *testing.T, data string) int64 {
	kid := hex.EncodeToString(kidOf(t, s.look, s.victim))
	return map[string]func(t *testing.T, data string) int64{
		"erasure": func(t *testing.T, data string) int64 {
			return forge(t, data, "account-"+s.victim, "account.erased.v1", fmt.Sprintf(`{"kid":%q}`, kid))
		},
		"administrator": func(t *testing.T, data string) int64 {
			return forge(t, data, "api-keys", "api-key.updated.v1",
				fmt.Sprintf(`{"keyId":%q,"settings":{"name":"reader","scopes":["ledger:admin"]},"fields":["scopes"]}`, s.reader.KeyID))
		},
		"status": func(t *testing.T, data string) int64 {
			return forge(t, data, "account-"+s.victim, "account.status-changed.v1", `{"from":"VERIFIED","to":"DECLINED"}`)
		},
	}
}

// wantUnexecuted checks that nothing in the directory is the effect of a forgery.
func (s *snapshots) wantUnexecuted(t *testing.T, data string, kid []byte, forged int64) {
	t.Helper()
	if !keyLives(t, data, kid) {
		t.Error("the victim's key is destroyed")
	}
	if size := signed(t, data); size >= forged {
		t.Errorf("a checkpoint of size %d covers the forged event at %d", size, forged)
	}
}

// T1: an event is inserted that the server did not append.
func (s *snapshots) unexpectedEvent(t *testing.T) {
	t.Parallel()
	kid := kidOf(t, s.look, s.victim)
	for name, forgery := range s.forgeries(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var position int64
			data, _ := refused(t, attack{
				from: s.base, alter: func(t *testing.T, data string) { position = forgery(t, data) },
				says: []string{logFile, fmt.Sprint(s.head)}, at: []int64{s.head + 1},
			})
			s.wantUnexecuted(t, data, kid, position)
		})
		t.Run(name+" after kill -9", func(t *testing.T) {
			t.Parallel()
			var position int64
			last := head(t, copied(t, s.killed))
			data, _ := refused(t, attack{
				from: s.killed, alter: func(t *testing.T, data string) { keepWAL(t, data, func() { position = forgery(t, data) }) },
				says: []string{logFile}, at: []int64{last + 1},
			})
			s.wantUnexecuted(t, data, kid, position)
		})
		t.Run(name+" beside a server", func(t *testing.T) {
			t.Parallel()
			data := copied(t, s.base)
			p := startServer(t, data, "--webhook-allow", loopback)
			waitUntilReady(t, p)
			position := forgery(t, data)
			s.wantNoEffect(t, p)
			body := fmt.Sprintf(`{"origin":"created","identities":[{"provider":"self","email":%q}]}`, address("next"))
			if response, _, err := p.do(t.Context(), "POST", "/v1/accounts", body); err == nil && response.StatusCode < 500 {
				t.Errorf("a write after the forged event is answered %s", response.Status)
			}
			wantEnd(t, p)
			s.wantUnexecuted(t, data, kid, position)
			wantVerify(t, data, []int{cli.ExitFaults}, []int64{s.head + 1})
			wantRefused(t, data, nil, logFile)
			s.wantUnexecuted(t, data, kid, position)
		})
	}
}

// wantNoEffect checks that a running server shows no effect of the forgeries.
func (s *snapshots) wantNoEffect(t *testing.T, p *process) {
	t.Helper()
	if response, text, err := p.do(t.Context(), "GET", "/v1/accounts/"+s.victim, ""); err == nil {
		if response.StatusCode == http.StatusGone || strings.Contains(string(text), "DECLINED") {
			t.Errorf("the server shows the forged event: %s: %s", response.Status, text)
		}
	}
	s.wantNoAdministrator(t, p, s.reader)
}

// wantNoAdministrator checks that k cannot make another key.
func (s *snapshots) wantNoAdministrator(t *testing.T, p *process, k apiKey) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"/v1/api-keys", strings.NewReader(`{"name":"minted","scopes":["ledger:admin"]}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+k.Key)
	request.Header.Set("Content-Type", "application/json")
	response, err := p.client.Do(request)
	if err != nil {
		return // the server has ended
	}
	response.Body.Close()
	if response.StatusCode < 400 {
		t.Errorf("a key that may only read accounts made an administrator's key: %s", response.Status)
	}
}

// T2: the log is lost, older, or lacks its -wal.
func (s *snapshots) lostLog(t *testing.T) {
	t.Parallel()
	older := head(t, copied(t, s.older))
	empty := func(t *testing.T, data string) {
		removeFiles(t, data, logFile+"-wal", logFile+"-shm")
		if err := os.Truncate(filepath.Join(data, logFile), 0); err != nil {
			t.Fatal(err)
		}
	}
	for name, a := range map[string]attack{
		"empty":           {from: s.base, alter: empty, says: []string{logFile}},
		"empty, no views": {from: s.base, alter: func(t *testing.T, data string) { empty(t, data); removeFiles(t, data, viewsFile, deliveryFile) }, says: []string{logFile}},
		// The older log is whole, so verify needs an anchor to see it.
		"older": {
			from: s.base, alter: func(t *testing.T, data string) { putFile(t, data, logFile, filepath.Join(s.older, logFile)) },
			says: []string{logFile, fmt.Sprint(older)}, verify: []int{cli.ExitOK, cli.ExitFaults}, at: []int64{older, older + 1},
		},
		"older beside a newer views.db only": {
			from: s.older, alter: func(t *testing.T, data string) { putFile(t, data, viewsFile, filepath.Join(s.base, viewsFile)) },
			says: []string{viewsFile, fmt.Sprint(older)}, verify: []int{cli.ExitOK},
		},
		"older beside a newer delivery.db only": {
			from: s.older, alter: func(t *testing.T, data string) {
				putFile(t, data, deliveryFile, filepath.Join(s.base, deliveryFile))
			},
			says: []string{deliveryFile, fmt.Sprint(older)}, verify: []int{cli.ExitOK},
		},
		"views.db of another ledger": {
			from: s.base, alter: func(t *testing.T, data string) { putFile(t, data, viewsFile, filepath.Join(s.other, viewsFile)) },
			says: []string{viewsFile}, verify: []int{cli.ExitOK},
		},
		"delivery.db of another ledger": {
			from: s.base, alter: func(t *testing.T, data string) {
				putFile(t, data, deliveryFile, filepath.Join(s.other, deliveryFile))
			},
			says: []string{deliveryFile}, verify: []int{cli.ExitOK},
		},
		"without its -wal": {
			from: s.killed, alter: func(t *testing.T, data string) { removeFiles(t, data, logFile+"-wal", logFile+"-shm") },
			says: []string{logFile, "-wal", "--accept-missing-wal"},
		},
		// The views are ahead of what is left, which the flag does not accept.
		// The log was opened and closed, so its mark changes.
		"without its -wal, accepted": {
			marked: true,
			from:   s.killed, alter: func(t *testing.T, data string) { removeFiles(t, data, logFile+"-wal", logFile+"-shm") },
			args: []string{"--accept-missing-wal"}, says: []string{logFile, viewsFile},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, a)
		})
	}
	t.Run("older, with an anchor", func(t *testing.T) {
		t.Parallel()
		data := copied(t, s.base)
		anchor := filepath.Join(t.TempDir(), "anchor")
		last := one[[]byte](t, data, logFile, `SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1`)
		if err := os.WriteFile(anchor, last, 0o600); err != nil {
			t.Fatal(err)
		}
		putFile(t, data, logFile, filepath.Join(s.older, logFile))
		wantVerify(t, data, []int{cli.ExitFaults}, []int64{older}, "--anchor", anchor)
	})
	t.Run("-wal lost and nothing else ahead", func(t *testing.T) {
		t.Parallel()
		data := copied(t, s.killed)
		removeFiles(t, data, logFile+"-wal", logFile+"-shm", viewsFile, viewsFile+"-wal", viewsFile+"-shm", deliveryFile, deliveryFile+"-wal", deliveryFile+"-shm")
		wantRefused(t, data, nil, logFile, "-wal", "--accept-missing-wal")
		p := startServer(t, data, "--accept-missing-wal")
		waitUntilReady(t, p)
		p.create(t, address("accepted"))
		if err := p.stop(t.Context()); err != nil {
			t.Errorf("the server ended with %v\n%s", err, p.log)
		}
		mustRun(t, "verify", "--data", data)
		mustRun(t, "check", "--views", "--data", data)
		p = startServer(t, data) // the flag is needed once
		waitUntilReady(t, p)
	})
	t.Run("killed and untouched", func(t *testing.T) {
		t.Parallel()
		data := copied(t, s.killed)
		p := startServer(t, data)
		waitUntilReady(t, p)
		p.create(t, address("continued"))
		checkLedger(t, 0, data)
	})
}

// T3: every file is older than what was signed, except the file outside.
func (s *snapshots) rollBack(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "last-signed")
	newer, rolled := copied(t, s.base), copied(t, s.base)
	p := startServer(t, newer, "--last-signed", file)
	p.create(t, address("forgotten"))
	if err := p.stop(t.Context()); err != nil {
		t.Fatalf("the server ended with %v\n%s", err, p.log)
	}
	known := content(t, file)
	if last := signed(t, newer); !strings.Contains(known, roots(t, newer)[last]) {
		t.Fatalf("the file has\n%s\nbut the last checkpoint is\n%s", known, roots(t, newer)[last])
	}
	for _, name := range []string{viewsFile, deliveryFile} {
		removeFiles(t, rolled, name, name+"-wal", name+"-shm")
	}
	before := roots(t, rolled)
	args := []string{"--last-signed", file}
	wantRefused(t, rolled, args, logFile, file, fmt.Sprint(s.head+1))
	if after := roots(t, rolled); !maps.Equal(before, after) {
		t.Error("the refused server signed a checkpoint")
	}
	// Without the file outside, nothing can tell that all files are old.
	p = startServer(t, rolled)
	p.create(t, address("fork.1"))
	p.create(t, address("fork.2"))
	if err := p.stop(t.Context()); err != nil {
		t.Fatalf("the server ended with %v\n%s", err, p.log)
	}
	// The log is longer now, but beside what was signed.
	before = roots(t, rolled)
	wantRefused(t, rolled, args, logFile, file)
	if after := roots(t, rolled); !maps.Equal(before, after) {
		t.Error("the refused server signed a checkpoint")
	}
	if content(t, file) != known {
		t.Error("a refused server changed the file outside")
	}
	// The newer directory continues, and never signs another root of a size.
	p = startServer(t, newer, args...)
	p.create(t, address("remembered"))
	if err := p.stop(t.Context()); err != nil {
		t.Fatalf("the server ended with %v\n%s", err, p.log)
	}
	if last := signed(t, newer); !strings.Contains(content(t, file), roots(t, newer)[last]) {
		t.Error("the file outside does not have the last checkpoint")
	}
}

// T4: keys.db is lost, older, lacks its -wal or belongs to another ledger.
func (s *snapshots) lostKeys(t *testing.T) {
	t.Parallel()
	whole := []int{cli.ExitOK, cli.ExitFaults, exitUncovered} // of verify: the log itself is whole
	for name, a := range map[string]attack{
		"empty": {from: s.base, alter: func(t *testing.T, data string) {
			if err := os.Truncate(filepath.Join(data, keysFile), 0); err != nil {
				t.Fatal(err)
			}
		}},
		"older":                 {from: s.base, alter: func(t *testing.T, data string) { putFile(t, data, keysFile, filepath.Join(s.older, keysFile)) }},
		"older by one secret":   {from: s.base, alter: func(t *testing.T, data string) { putFile(t, data, keysFile, s.keysNoLast) }},
		"without its -wal":      {from: s.killed, alter: func(t *testing.T, data string) { removeFiles(t, data, keysFile+"-wal", keysFile+"-shm") }},
		"of another ledger":     {from: s.base, alter: func(t *testing.T, data string) { putFile(t, data, keysFile, filepath.Join(s.other, keysFile)) }},
		"of another, with keys": {from: s.base, alter: s.otherKeys},
	} {
		a.says, a.verify = []string{keysFile}, whole
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, a)
		})
	}
	t.Run("older, and the writes that follow", func(t *testing.T) {
		// The server of a copy with an older keys.db must not give a slot twice.
		t.Parallel()
		data := copied(t, s.base)
		putFile(t, data, keysFile, filepath.Join(s.older, keysFile))
		wantRefused(t, data, nil, keysFile)
		putFile(t, data, keysFile, filepath.Join(s.base, keysFile))
		p := startServer(t, data)
		p.create(t, address("repaired"))
		checkLedger(t, 0, data)
	})
}

// otherKeys replaces keys.db and the master key by those of another ledger, so
// that the keys open.
func (s *snapshots) otherKeys(t *testing.T, data string) {
	putFile(t, data, keysFile, filepath.Join(s.other, keysFile))
	putFile(t, data, masterKeyFile, filepath.Join(s.other, masterKeyFile))
}

// T6: a claim is deleted, so that a second account could have the same address.
func (s *snapshots) lostClaim(t *testing.T) {
	t.Parallel()
	data := copied(t, s.base)
	execute(t, data, logFile, fmt.Sprintf(`DELETE FROM claims WHERE stream = (SELECT num FROM streams WHERE name = 'account-%s')`, s.victim))
	code, stdout, stderr := accountledger(t, "check", "--data", data)
	if code != cli.ExitFaults || !strings.Contains(stdout, logFile) || !strings.Contains(stdout, "claim") {
		t.Errorf("check: exit code %d, want %d and the claims named\n%s%s", code, cli.ExitFaults, stdout, stderr)
	}
	wantImpersonal(t, stdout+stderr)
	p := startServer(t, data)
	wantEnd(t, p) // found in the background
	if !strings.Contains(p.log.String(), "claim") {
		t.Errorf("the server does not say that a claim is missing\n%s", p.log)
	}
	body := fmt.Sprintf(`{"origin":"created","identities":[{"provider":"self","email":%q}]}`, address("victim"))
	if response, text, err := p.do(t.Context(), "POST", "/v1/accounts", body); err == nil {
		t.Errorf("a second account with the address is answered %s: %s", response.Status, text)
	}
}

// T7: an old event is changed, all hashes agree, and the checkpoints are deleted.
func (s *snapshots) rewrittenLog(t *testing.T) {
	t.Parallel()
	at := eventAt(t, s.look, "account-"+s.victim, "account.created.v1", "VERIFIED")
	alter := func(t *testing.T, data string) {
		rewriteAll(t, data, at, `"userStatus":"VERIFIED"`, `"userStatus":"DECLINED"`)
	}
	// The position that differs is not provable: all hashes agree.
	seen := []int64{s.head, s.head + 1}
	t.Run("with the master key", func(t *testing.T) {
		t.Parallel()
		refused(t, attack{from: s.base, alter: alter, says: []string{logFile}, at: seen})
	})
	t.Run("without the sealed head", func(t *testing.T) {
		t.Parallel()
		refused(t, attack{from: s.base, says: []string{logFile}, at: seen, alter: func(t *testing.T, data string) {
			alter(t, data)
			execute(t, data, logFile, `DELETE FROM head`)
		}})
	})
	t.Run("for an auditor", func(t *testing.T) {
		t.Parallel()
		data := copied(t, s.base)
		alter(t, data)
		removeFiles(t, data, masterKeyFile, keysFile, viewsFile, deliveryFile, logKeyFile, adminKeyFile)
		wantVerify(t, data, []int{exitUncovered}, nil)
		wantVerify(t, data, []int{cli.ExitOK}, nil, "--allow-uncovered")
		code, stdout, stderr := accountledger(t, "verify", "--data", data)
		if code != exitUncovered || !strings.Contains(stdout+stderr, "sealed head: not checked") {
			t.Errorf("verify: exit code %d, want %d and that the sealed head is not checked\n%s%s", code, exitUncovered, stdout, stderr)
		}
	})
	t.Run("for an auditor with an anchor", func(t *testing.T) {
		t.Parallel()
		data := copied(t, s.base)
		anchor := filepath.Join(t.TempDir(), "anchor")
		last := one[[]byte](t, data, logFile, `SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1`)
		if err := os.WriteFile(anchor, last, 0o600); err != nil {
			t.Fatal(err)
		}
		alter(t, data)
		removeFiles(t, data, masterKeyFile, keysFile, viewsFile, deliveryFile, logKeyFile, adminKeyFile)
		wantVerify(t, data, []int{cli.ExitFaults}, []int64{signed(t, s.look)}, "--anchor", anchor)
	})
}

// T8: the bytes of an event change after it was appended and before a checkpoint
// covers it.
func (s *snapshots) changedBeforeSigning(t *testing.T) {
	t.Parallel()
	var data string
	var p *process
	var at int64
	// A slow machine may sign before the event is changed.
	for try := 0; ; try++ {
		data = copied(t, s.base)
		p = startServer(t, data)
		waitUntilReady(t, p)
		execute(t, data, logFile) // drops the triggers, which takes time
		p.create(t, address("signed"))
		sub := p.create(t, address("changed"))
		at = eventAt(t, data, "account-"+sub, "account.created.v1", "")
		rewrite(t, data, at, `"provider":"self"`, `"provider":"evil"`, false)
		if signed(t, data) < at {
			break
		}
		p.kill()
		if try == 10 {
			t.Fatal("each event was signed before it could be changed")
		}
	}
	p.do(t.Context(), "POST", "/v1/accounts", fmt.Sprintf(`{"origin":"created","identities":[{"provider":"self","email":%q}]}`, address("next")))
	wantEnd(t, p)
	if size := signed(t, data); size >= at {
		t.Errorf("a checkpoint of size %d was signed over the changed event at %d", size, at)
	}
	wantVerify(t, data, []int{cli.ExitFaults}, []int64{at})
	// A later start may find it only before it signs.
	if p = s.startUnlessRefused(t, data); p != nil {
		p.do(t.Context(), "POST", "/v1/accounts", fmt.Sprintf(`{"origin":"created","identities":[{"provider":"self","email":%q}]}`, address("later")))
		wantEnd(t, p)
	}
	if size := signed(t, data); size >= at {
		t.Errorf("a later start signed a checkpoint of size %d over the changed event at %d", size, at)
	}
}

// T16: parts of the log that no event depends on are changed.
func (s *snapshots) smallParts(t *testing.T) {
	t.Parallel()
	t.Run("an extra tile", func(t *testing.T) {
		t.Parallel()
		for _, at := range []struct{ level, n int64 }{{0, 99}, {0, -1}, {1, 1}, {7, 0}} {
			data := copied(t, s.base)
			execute(t, data, logFile, fmt.Sprintf(`INSERT INTO tiles (level, n, data) VALUES (%d, %d, zeroblob(8192))`, at.level, at.n))
			code, stdout, stderr := accountledger(t, "verify", "--data", data)
			if name := fmt.Sprintf("%d/%d", at.level, at.n); code != cli.ExitFaults || !strings.Contains(stdout, name) {
				t.Errorf("verify: exit code %d, want %d and tile %s named\n%s%s", code, cli.ExitFaults, name, stdout, stderr)
			}
		}
	})
	t.Run("another origin", func(t *testing.T) {
		t.Parallel()
		data := copied(t, s.base)
		execute(t, data, logFile, `UPDATE meta SET origin = 'accountledger/other'`)
		code, stdout, stderr := accountledger(t, "verify", "--data", data)
		if code != cli.ExitFaults || !strings.Contains(stdout+stderr, "origin") {
			t.Errorf("verify: exit code %d, want %d and the origin named\n%s%s", code, cli.ExitFaults, stdout, stderr)
		}
		wantRefused(t, data, nil, logFile)
	})
	t.Run("an anchor of the empty log", func(t *testing.T) {
		t.Parallel()
		skey := strings.TrimSpace(content(t, filepath.Join(s.base, logKeyFile)))
		signer, err := note.NewSigner(skey)
		if err != nil {
			t.Fatal(err)
		}
		empty := sha256.Sum256(nil)
		for _, tt := range []struct {
			name string
			root []byte
			want int
		}{{"right", empty[:], cli.ExitOK}, {"wrong", bytes.Repeat([]byte{1}, 32), cli.ExitFaults}} {
			msg, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n0\n%s\n", signer.Name(), base64.StdEncoding.EncodeToString(tt.root))}, signer)
			if err != nil {
				t.Fatal(err)
			}
			anchor := filepath.Join(t.TempDir(), "anchor")
			if err := os.WriteFile(anchor, msg, 0o600); err != nil {
				t.Fatal(err)
			}
			wantVerify(t, s.look, []int{tt.want}, []int64{0}, "--anchor", anchor)
		}
	})
}

// T17: an attacker adds a live account to the view of erasures.
func (s *snapshots) unaskedErasure(t *testing.T) {
	t.Parallel()
	data := copied(t, s.base)
	kid := kidOf(t, data, s.victim)
	position := eventAt(t, data, "account-"+s.victim, "account.created.v1", "")
	execute(t, data, viewsFile, fmt.Sprintf(`INSERT INTO erasures_1 (position, sub, kid) VALUES (%d, '%s', '%x')`, position, s.victim, kid))
	p := startServer(t, data)
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if !keyLives(t, data, kid) {
			t.Fatalf("the key of a live account is destroyed\n%s", p.log)
		}
		if p.hasEnded() || strings.Contains(p.log.String(), s.victim) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not report the forged erasure\n%s", p.log)
		}
	}
	if p.hasEnded() {
		wantEnd(t, p)
	} else if response, text, err := p.do(t.Context(), "GET", "/v1/accounts/"+s.victim, ""); err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(text), address("victim")) {
		t.Errorf("the account is answered %v, %v: %s", response, err, text)
	}
	if !keyLives(t, data, kid) {
		t.Error("the key of a live account is destroyed")
	}
	if n := one[int64](t, data, logFile, `SELECT count(*) FROM events JOIN streams ON num = stream WHERE name = ? AND type LIKE 'account.eras%'`, "account-"+s.victim); n > 0 {
		t.Errorf("the log has %d events about the erasure", n)
	}
}

// T18: what delivery.db says about webhooks is changed. It does not even have their
// URLs, which earlier versions took from it.
func (s *snapshots) changedDelivery(t *testing.T) {
	t.Parallel()
	data := copied(t, s.base)
	if text := rows(t, filepath.Join(data, deliveryFile)); strings.Contains(text, s.receiver.URL) {
		t.Error("delivery.db has the URL of a webhook")
	}
	execute(t, data, deliveryFile, `UPDATE endpoint SET state = 'deleted'`,
		`INSERT INTO endpoint (id, state) VALUES ('01a22bb7-dc0b-78d7-b6aa-0c091a62d209', 'enabled')`)
	p := startServer(t, data, "--webhook-allow", loopback)
	sub := s.trigger(t, p)
	for deadline := time.Now().Add(15 * time.Second); !s.receiver.got(sub); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the registered URL gets no delivery\n%s", p.log)
		}
	}
	if list := mustDo(t, p, "GET", "/v1/webhooks", ""); strings.Contains(list, "01a22bb7-dc0b-78d7-b6aa-0c091a62d209") {
		t.Errorf("the API lists the forged webhook: %s", list)
	}
}

// trigger causes an event that the webhook has selected, on a new account, and
// returns the account's sub.
func (s *snapshots) trigger(t *testing.T, p *process) (sub string) {
	t.Helper()
	sub = p.create(t, address("trigger"))
	mustDo(t, p, "PUT", "/v1/accounts/"+sub+"/status", `{"userStatus":"DECLINED"}`)
	return sub
}

// T19: an old event that the server acts on is rewritten with its leaf hash.
func (s *snapshots) rewrittenEvent(t *testing.T) {
	t.Parallel()
	// start starts a server on a copy with a rewritten event and without some
	// databases. If the server refuses to start, it returns nil.
	start := func(t *testing.T, stream, typ, old, with string, without ...string) (data string, p *process) {
		t.Helper()
		data = copied(t, s.base)
		at := eventAt(t, data, stream, typ, old)
		if at > 256 {
			t.Fatalf("the event is at %d, not in the first tile", at)
		}
		rewrite(t, data, at, old, with, true)
		wantVerify(t, data, []int{cli.ExitFaults}, []int64{at})
		for _, name := range without {
			removeFiles(t, data, name, name+"-wal", name+"-shm")
		}
		return data, s.startUnlessRefused(t, data)
	}
	// settle waits until the server has ended, or until a time in which it would
	// have acted on the event.
	settle := func(t *testing.T, p *process, acted func() bool) {
		t.Helper()
		for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if acted() {
				t.Errorf("the server acted on a rewritten event\n%s", p.log)
				return
			}
			if p.hasEnded() {
				wantEnd(t, p)
				return
			}
		}
	}
	t.Run("scopes of an API key", func(t *testing.T) {
		t.Parallel()
		data, p := start(t, "api-keys", "api-key.created.v1", `"name":"reader","scopes":["accounts:read"]`, `"name":"reader","scopes":["ledger:admin"]`)
		if p == nil {
			return
		}
		s.wantNoAdministrator(t, p, s.reader)
		settle(t, p, func() bool {
			return one[int64](t, data, logFile, `SELECT count(*) FROM events WHERE type = 'api-key.created.v1' AND instr(CAST(clear AS TEXT), 'minted') > 0`) > 0
		})
	})
	t.Run("scopes of an API key, removed again", func(t *testing.T) {
		// The event that took a scope away is deleted. It is the last one of its
		// stream, so no later event refers to it.
		t.Parallel()
		data := copied(t, s.base)
		at := eventAt(t, data, "api-keys", "api-key.updated.v1", s.demoted.KeyID)
		execute(t, data, logFile, fmt.Sprintf(`DELETE FROM events WHERE position = %d`, at))
		wantVerify(t, data, []int{cli.ExitFaults}, []int64{at})
		if p := s.startUnlessRefused(t, data); p != nil {
			s.wantNoAdministrator(t, p, s.demoted)
			settle(t, p, func() bool { return false })
		}
	})
	t.Run("configuration", func(t *testing.T) {
		t.Parallel()
		_, p := start(t, "configuration", "field.set.v1", `"gold"`, `"lead"`)
		if p == nil {
			return
		}
		body := fmt.Sprintf(`{"origin":"created","customFields":{"tier":"lead"},"identities":[{"provider":"self","email":%q}]}`, address("lead"))
		if response, text, err := p.do(t.Context(), "POST", "/v1/accounts", body); err == nil && response.StatusCode < 500 {
			t.Errorf("an account with a forged field is answered %s: %s", response.Status, text)
		}
		settle(t, p, func() bool { return false })
	})
	t.Run("URL of a webhook", func(t *testing.T) {
		t.Parallel()
		evil := newHits(t)
		_, p := start(t, "webhook-"+s.webhook, "webhook.created.v1", s.receiver.URL, evil.URL, deliveryFile)
		if p == nil {
			return
		}
		p.do(t.Context(), "PUT", "/v1/accounts/"+s.victim+"/status", `{"userStatus":"DECLINED"}`)
		settle(t, p, func() bool { return evil.got("") })
	})
	t.Run("time of a planned deletion", func(t *testing.T) {
		t.Parallel()
		data := copied(t, s.base)
		kid := kidOf(t, data, s.planned)
		due := time.UnixMicro(one[int64](t, data, viewsFile, `SELECT due FROM schedules_1 WHERE sub = ?`, s.planned)).UTC()
		past := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
		var at []int64
		for _, typ := range []string{"account.schedule-planned.v1", "account.deletion-scheduled.v1"} {
			at = append(at, eventAt(t, data, "account-"+s.planned, typ, ""))
			rewrite(t, data, at[len(at)-1], due.Format(time.RFC3339Nano), past.Format(time.RFC3339Nano), true)
		}
		wantVerify(t, data, []int{cli.ExitFaults}, at)
		execute(t, data, viewsFile, fmt.Sprintf(`UPDATE schedules_1 SET due = %d`, past.UnixMicro()))
		p := s.startUnlessRefused(t, data)
		if p == nil {
			return
		}
		settle(t, p, func() bool { return !keyLives(t, data, kid) })
		if !keyLives(t, data, kid) {
			t.Error("the planned deletion was executed")
		}
		if n := one[int64](t, data, logFile, `SELECT count(*) FROM events JOIN streams ON num = stream WHERE name = ? AND type = 'account.erased.v1'`, "account-"+s.planned); n > 0 {
			t.Error("the log says that the account was erased")
		}
	})
	t.Run("which account an erasure destroys", func(t *testing.T) {
		// The erasure is completed. The rewritten event names another key, and
		// the view says that it is not completed.
		t.Parallel()
		data := copied(t, s.base)
		kid := kidOf(t, data, s.victim)
		at := eventAt(t, data, "account-"+s.erased, "account.erased.v1", "")
		rewrite(t, data, at, hex.EncodeToString(kidOf(t, data, s.erased)), hex.EncodeToString(kid), true)
		execute(t, data, viewsFile, fmt.Sprintf(`INSERT INTO erasures_1 (position, sub, kid) VALUES (%d, '%s', '%x')`, at, s.erased, kid))
		p := s.startUnlessRefused(t, data)
		if p == nil {
			return
		}
		settle(t, p, func() bool { return !keyLives(t, data, kid) })
		if !keyLives(t, data, kid) {
			t.Error("the key of a live account was destroyed")
		}
	})
}

// startUnlessRefused starts a server on data. If the server ends before it listens,
// it must be because the files were altered; startUnlessRefused then returns nil.
func (s *snapshots) startUnlessRefused(t *testing.T, data string) *process {
	t.Helper()
	p, stdout, err := spawn(data, "--webhook-allow", loopback)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if err := p.ready(stdout, data); err != nil {
		wantEnd(t, p)
		return nil
	}
	return p
}

// T20: an old event of an account is rewritten, and views.db deleted.
func (s *snapshots) rebuildFromRewritten(t *testing.T) {
	t.Parallel()
	data := copied(t, s.base)
	at := eventAt(t, data, "account-"+s.victim, "account.created.v1", "VERIFIED")
	rewrite(t, data, at, `"userStatus":"VERIFIED"`, `"userStatus":"DECLINED"`, true)
	removeFiles(t, data, viewsFile, viewsFile+"-wal", viewsFile+"-shm")
	p := s.startUnlessRefused(t, data)
	for deadline := time.Now().Add(5 * time.Second); p != nil && !p.hasEnded() && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if response, text, err := p.do(t.Context(), "GET", "/v1/accounts/"+s.victim, ""); err == nil && strings.Contains(string(text), "DECLINED") {
			t.Errorf("the server shows a rewritten account: %s: %s", response.Status, text)
			break
		}
		if response, _, err := p.do(t.Context(), "GET", "/readyz", ""); err == nil && response.StatusCode == http.StatusOK {
			t.Error("the server is ready with views of a rewritten log")
			break
		}
	}
	if p != nil && p.hasEnded() {
		wantEnd(t, p)
	}
	wantVerify(t, data, []int{cli.ExitFaults}, []int64{at})
}
