package sqlite_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"maps"
	"math"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
	"accountledger/eventstore/tlog"
)

// sequences is how many sequences TestTamperSequences runs.
// ACCOUNTLEDGER_TEST_TAMPER sets another number.
func sequences() int {
	if n, err := strconv.Atoi(os.Getenv("ACCOUNTLEDGER_TEST_TAMPER")); err == nil {
		return n
	}
	return 200
}

// TestTamperSequences runs random sequences of appends, kills, alterations of the
// log's files, restarts and verifications. Whatever is altered, the store must not
// sign a root that is not the root of what it appended, must not yield an altered
// event as proven, and Verify must not pass or name a place that is not altered.
func TestTamperSequences(t *testing.T) {
	t.Parallel()
	seed := uint64(1) // the small run is the same each time, except for ids and times
	if os.Getenv("ACCOUNTLEDGER_TEST_TAMPER") != "" {
		seed = uint64(time.Now().UnixNano())
	}
	if text := os.Getenv("ACCOUNTLEDGER_TEST_TAMPER_SEED"); text != "" { // repeats a run
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	base := newVictim(t)
	dir := t.TempDir() // of all sequences, one after the other: thousands of copies would fill the disk
	outcomes := map[string]int{}
	failed := 0
	for i := range sequences() {
		v := base.clone(dir, mathrand.New(mathrand.NewPCG(seed, uint64(i))))
		v.sequence()
		for _, o := range v.outcomes {
			outcomes[o]++
		}
		if len(v.faults) == 0 {
			continue
		}
		t.Errorf("sequence %d of seed %d: %s\n  %s", i, seed, strings.Join(v.steps, "; "), strings.Join(v.faults[:min(len(v.faults), 6)], "\n  "))
		if failed++; failed == 20 {
			t.Fatal("too many sequences fail")
		}
	}
	t.Logf("outcomes: %v", outcomes)
	for _, o := range []string{outcomeRefused, outcomeUnaltered} {
		if sequences() >= 100 && outcomes[o] == 0 {
			t.Errorf("no sequence was %s", o)
		}
	}
}

// Outcomes of opening a log after alterations.
const (
	outcomeRefused   = "refused"
	outcomeStopped   = "opened, then stopped"
	outcomeAppended  = "opened, and appended to" // what is altered was not needed
	outcomeUnaltered = "unaltered"               // the alterations had no effect
)

// victim is a closed log under attack, and what is known about it from outside.
type victim struct {
	t        *testing.T
	random   *mathrand.Rand
	dir      string
	scratch  string // directory for copies
	signer   note.Signer
	verifier note.Verifier
	sealKey  []byte // of the sealed head; the attacker does not have it

	truth appended         // the events that the store appended
	last  []byte           // the newest checkpoint, kept elsewhere
	dirty bool             // the store was killed
	older []olderVictim    // copies of earlier states
	marks map[string]bool  // alterations whose effect content does not show
	seen  map[int64]string // the signed text of each size

	lost bool // the -wal of a killed log was deleted

	steps, faults, outcomes []string
}

// appended is a sequence of events from position 1 on.
type appended []eventContent

// eventContent is an event in the log's files. Two that are equal have the same
// bytes in every column.
type eventContent struct {
	recorded string // what a Recorded shows, except the sealed part
	hashes   string // prev and the hash of the sealed part
	sealed   string
	stream   string
	leaf     tlog.Hash
}

type olderVictim struct {
	files map[string][]byte
	truth appended
	dirty bool
}

// config returns the configuration with which every step opens the log. This is
// the only place that depends on how a store gets its keys.
func (v *victim) config() sqlite.Config {
	return sqlite.Config{
		Dir: v.dir, Ledger: v.signer.Name(), Watch: []string{"account-"}, Signer: v.signer, CheckpointInterval: time.Hour, LastSigned: v.last,
		Existing: len(v.truth) > 0, Vouch: func(message []byte) [32]byte {
			mac := hmac.New(sha256.New, v.sealKey)
			mac.Write(message)
			return [32]byte(mac.Sum(nil))
		},
	}
}

// trust returns what Verify trusts: the key, and a checkpoint kept elsewhere.
func (v *victim) trust() sqlite.Trust {
	trust := sqlite.Trust{Verifiers: []note.Verifier{v.verifier}, Erasures: []string{erasure}, ErasedKey: erasedKey}
	if v.last != nil {
		trust.Anchors = [][]byte{v.last}
	}
	return trust
}

// fault records that the rule does not hold.
func (v *victim) fault(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	v.faults = append(v.faults, text[:min(len(text), 400)])
}

// newVictim returns a log of about 480 events in a few streams, with a full tile and
// claims, and copies of its earlier states. A second tile is full soon after.
func newVictim(t *testing.T) *victim {
	v := &victim{t: t, random: mathrand.New(mathrand.NewPCG(1, 2)), dir: t.TempDir(), scratch: t.TempDir(), sealKey: []byte(rand.Text()), seen: map[int64]string{}}
	v.signer, v.verifier = newSigner(t)
	for len(v.truth) < 450 {
		v.live(1+v.random.IntN(6), false)
		v.keepCopy()
	}
	if len(v.faults) > 0 {
		t.Fatalf("the log of the test is not sound: %q", v.faults)
	}
	return v
}

// clone returns a copy of v whose log is in dir.
func (v *victim) clone(dir string, random *mathrand.Rand) *victim {
	c := *v
	c.random, c.dir = random, dir
	c.truth = slices.Clone(v.truth)
	c.older, c.seen = slices.Clone(v.older), maps.Clone(v.seen)
	c.marks, c.steps, c.faults, c.outcomes = map[string]bool{}, nil, nil, nil
	c.write(v.files())
	return &c
}

// files returns the log's files. Other files in the directory are not part of it.
func (v *victim) files() map[string][]byte {
	files := map[string][]byte{}
	for _, name := range []string{"log.db", "log.db-wal"} {
		b, err := os.ReadFile(filepath.Join(v.dir, name))
		if err == nil {
			files[name] = b
		} else if !os.IsNotExist(err) {
			v.t.Fatal(err)
		}
	}
	return files
}

// write replaces the log's files.
func (v *victim) write(files map[string][]byte) {
	for _, name := range []string{"log.db", "log.db-wal", "log.db-shm"} {
		path := filepath.Join(v.dir, name)
		var err error
		if b, ok := files[name]; ok {
			err = os.WriteFile(path, b, 0o600)
		} else if err = os.Remove(path); os.IsNotExist(err) {
			err = nil
		}
		if err != nil {
			v.t.Fatal(err)
		}
	}
}

func (v *victim) keepCopy() {
	v.older = append(v.older, olderVictim{v.files(), slices.Clone(v.truth), v.dirty})
}

// sequence runs one sequence: appends and kills, then alterations, then opening,
// appending and verifying, until the log is refused.
func (v *victim) sequence() {
	for range 1 + v.random.IntN(3) {
		for range v.random.IntN(3) {
			v.live(1+v.random.IntN(3), v.random.IntN(2) == 0)
			if v.random.IntN(3) == 0 {
				v.keepCopy()
			}
		}
		for range 1 + v.random.IntN(5)/4 {
			v.alter()
		}
		altered, refused := v.examine()
		if altered && !refused {
			v.examine() // a later start must not believe more
		}
		if altered || refused || len(v.faults) > 0 {
			return
		}
	}
}

// live opens the log, which is unaltered, appends commits, and closes or kills it.
func (v *victim) live(commits int, kill bool) {
	v.steps = append(v.steps, fmt.Sprintf("%d commits", commits))
	s, err := sqlite.Open(v.t.Context(), v.config())
	if err != nil {
		v.fault("an unaltered log cannot be opened: %v", err)
		return
	}
	revisions := map[string]eventstore.Revision{}
	for _, e := range v.truth {
		if last, exists := revisions[e.stream]; exists {
			revisions[e.stream] = last + 1
		} else {
			revisions[e.stream] = 0
		}
	}
	for range commits {
		if _, err := s.Append(v.t.Context(), v.commit(revisions)); err != nil {
			v.fault("append to an unaltered log: %v", err)
		}
	}
	v.dirty = kill
	files := v.files()
	if err := s.Close(); err != nil {
		v.fault("close: %v", err)
	}
	if kill {
		v.steps = append(v.steps, "kill")
		v.write(files)
	}
	c := v.content()
	if c.err != nil || c.head < int64(len(v.truth)) {
		v.t.Fatalf("%q: the log cannot be read: %v", v.steps, c.err)
	}
	v.record(c)
	v.signed(c)
	if len(v.altered(c)) > 0 || c.tiles != v.truth.tiles() {
		v.fault("the store did not write what it appended")
	}
	v.last = slices.Concat(v.last[:0:0], c.newest())
}

// record adds the events of the log after those of the truth to the truth.
func (v *victim) record(c *content) {
	for p := int64(len(v.truth)) + 1; p <= c.head; p++ {
		v.truth = append(v.truth, c.events[p])
	}
}

// commit returns a random commit that the store accepts, if revisions are those of
// its streams, and updates revisions.
func (v *victim) commit(revisions map[string]eventstore.Revision) eventstore.Commit {
	var c eventstore.Commit
	for n := range 1 + v.random.IntN(3) {
		stream := fmt.Sprintf("account-%d", v.random.IntN(4)*3+n)
		last, exists := revisions[stream]
		if !exists {
			last = eventstore.NoStream
		}
		w := eventstore.Write{Stream: stream, Expected: last}
		for range 1 + v.random.IntN(8) {
			w.Events = append(w.Events, sealedEvent("account.changed.v1", v.random.IntN(1000)))
		}
		revisions[stream] = last + eventstore.Revision(len(w.Events))
		c.Writes = append(c.Writes, w)
		if v.random.IntN(2) == 0 {
			c.Claim = append(c.Claim, eventstore.Claim{Kind: "email", Key: fmt.Sprint(v.random.Uint64()), Owner: stream})
		}
	}
	return c
}

// content is what the log's files hold, read by SQL.
type content struct {
	err    error // not nil: the files cannot be read
	head   int64
	events map[int64]eventContent
	tiles  string
	origin string
	notes  map[int64][]byte
}

// newest returns the note of the largest checkpoint, nil if there is none.
func (c *content) newest() []byte {
	if len(c.notes) == 0 {
		return nil
	}
	return c.notes[slices.Max(slices.Collect(maps.Keys(c.notes)))]
}

// content reads copies of the files, because reading a log can change its -wal.
func (v *victim) content() *content {
	c := &content{events: map[int64]eventContent{}, notes: map[int64][]byte{}}
	scratch := &victim{t: v.t, dir: v.scratch}
	scratch.write(v.files())
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(scratch.dir, "log.db"))
	if err != nil {
		v.t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	each := func(query string, scan func(*sql.Rows) error) {
		if c.err != nil {
			return
		}
		rows, err := db.Query(query)
		if err != nil {
			c.err = err
			return
		}
		defer rows.Close()
		for rows.Next() && c.err == nil {
			c.err = scan(rows)
		}
		if c.err == nil {
			c.err = rows.Err()
		}
	}
	each(`SELECT e.position, ifnull(s.name, ''), e.revision, e.time, e.id, e.type, e.actor, e.clear, e.prev, e.kid, e.sealed_hash, e.leaf_hash, ifnull(p.bytes, x'')
		FROM events e NOT INDEXED LEFT JOIN streams s ON s.num = e.stream LEFT JOIN sealed p ON p.position = e.position`, func(rows *sql.Rows) error {
		var position, revision, at int64
		var stream, typ, actor string
		var id, clear, prev, kid, hash, leaf, sealed []byte
		err := rows.Scan(&position, &stream, &revision, &at, &id, &typ, &actor, &clear, &prev, &kid, &hash, &leaf, &sealed)
		e := eventContent{
			recorded: recorded(stream, revision, at, id, typ, actor, clear, kid), hashes: strconv.Itoa(len(prev)) + string(prev) + string(hash),
			sealed: string(sealed), stream: stream,
		}
		if len(leaf) != len(e.leaf) {
			e.hashes += string(leaf)
		}
		copy(e.leaf[:], leaf)
		c.events[position] = e
		c.head = max(c.head, position)
		return err
	})
	var tiles []string
	each(`SELECT level, n, data FROM tiles ORDER BY level, n`, func(rows *sql.Rows) error {
		var level, n int64
		var data []byte
		err := rows.Scan(&level, &n, &data)
		tiles = append(tiles, fmt.Sprintf("%d/%d %x", level, n, data))
		return err
	})
	c.tiles = strings.Join(tiles, "\n")
	each(`SELECT size, note FROM checkpoints`, func(rows *sql.Rows) error {
		var size int64
		var msg []byte
		err := rows.Scan(&size, &msg)
		c.notes[size] = msg
		return err
	})
	origins := 0
	each(`SELECT origin FROM meta`, func(rows *sql.Rows) error { origins++; return rows.Scan(&c.origin) })
	if origins != 1 {
		c.origin = ""
	}
	return c
}

// recorded returns what a Recorded shows as a text to compare.
func recorded(stream string, revision, at int64, id []byte, typ, actor string, clear, kid []byte) string {
	b := make([]byte, 0, 256)
	for _, number := range []int64{revision, at, int64(len(stream)), int64(len(typ)), int64(len(actor)), int64(len(clear))} {
		b = append(strconv.AppendInt(b, number, 10), ' ')
	}
	for _, text := range []string{stream, string(id), typ, actor, string(clear), string(kid)} {
		b = append(b, text...)
	}
	return string(b)
}

// root returns the root of the tree (RFC 6962) of the first n events. It does not
// use package tlog, which the store uses.
func (a appended) root(n int64) tlog.Hash {
	var tree func(leaves []tlog.Hash) tlog.Hash
	tree = func(leaves []tlog.Hash) tlog.Hash {
		switch len(leaves) {
		case 0:
			return sha256.Sum256(nil)
		case 1:
			return leaves[0]
		}
		split := 1
		for split*2 < len(leaves) {
			split *= 2
		}
		left, right := tree(leaves[:split]), tree(leaves[split:])
		return sha256.Sum256(slices.Concat([]byte{1}, left[:], right[:]))
	}
	leaves := make([]tlog.Hash, n)
	for i := range leaves {
		leaves[i] = a[i].leaf
	}
	return tree(leaves)
}

// tiles returns the tiles of the tree as a text to compare.
func (a appended) tiles() string {
	var rows []string
	var above []byte
	for n := 0; (n+1)*tlog.TileWidth <= len(a); n++ {
		var row []byte
		part := a[n*tlog.TileWidth:][:tlog.TileWidth]
		for _, e := range part {
			row = append(row, e.leaf[:]...)
		}
		root := part.root(tlog.TileWidth)
		above = append(above, root[:]...)
		rows = append(rows, fmt.Sprintf("0/%d %x", n, row))
	}
	if above != nil {
		rows = append(rows, fmt.Sprintf("1/0 %x", above))
	}
	return strings.Join(rows, "\n")
}

// altered returns the positions at which c does not hold what the store appended.
func (v *victim) altered(c *content) map[int64]bool {
	positions := map[int64]bool{}
	for i, was := range v.truth {
		if e, exists := c.events[int64(i)+1]; !exists || e != was {
			positions[int64(i)+1] = true
		}
	}
	for p := range c.events {
		if p < 1 || p > int64(len(v.truth)) {
			positions[p] = true
		}
	}
	return positions
}

// signed checks that every checkpoint in c states the root of what was appended.
func (v *victim) signed(c *content) {
	for size, msg := range c.notes {
		n, err := note.Open(msg, note.VerifierList(v.verifier))
		if err != nil {
			continue // altered, not signed
		}
		var stated int64
		var hash string
		if _, err := fmt.Sscanf(n.Text, v.signer.Name()+"\n%d\n%s", &stated, &hash); err != nil {
			v.fault("the signed note of size %d is no checkpoint: %q", size, n.Text)
			continue
		}
		if was, ok := v.seen[stated]; ok && was != n.Text {
			// After an older copy is restored that nothing can tell from a newer
			// one, another root of a size that was never published is right.
			if stated > int64(len(v.truth)) || strings.Contains(was, hashText(v.truth.root(stated))) {
				v.fault("two roots are signed for size %d", stated)
			}
		}
		v.seen[stated] = n.Text
		if stated > int64(len(v.truth)) {
			v.fault("a checkpoint of size %d is signed, but only %d events were appended", stated, len(v.truth))
		} else if hash != hashText(v.truth.root(stated)) {
			v.fault("a checkpoint of size %d is signed over altered events", stated)
		}
	}
}

func hashText(h tlog.Hash) string { return h.String() }

// Marks of alterations that content does not show.
const (
	markHead    = "head"    // of the table with the sealed head: the log must be refused
	markOlder   = "older"   // the log is below what was signed: it must be refused
	markUnknown = "unknown" // of the file's structure or another table: it may be refused
)

// alter makes one random alteration.
func (v *victim) alter() {
	kinds := []struct {
		name  string
		share int
		alter func() string
	}{
		{"row", 10, v.alterRow},
		{"delete", 4, v.deleteRow},
		{"duplicate", 3, v.duplicateRow},
		{"rewrite", 6, v.rewriteEvent},
		{"forge", 6, v.forgeEvent},
		{"rewrite all", 3, v.rewriteAll},
		{"cut", 3, v.cutEvents},
		{"swap", 2, v.swapEvents},
		{"file", 4, v.alterFile},
		{"older", 4, v.restoreOlder},
		{"wal", 4, v.loseWAL},
	}
	shares := 0
	for _, k := range kinds {
		shares += k.share
	}
	pick := v.random.IntN(shares)
	for _, k := range kinds {
		if pick -= k.share; pick < 0 {
			v.steps = append(v.steps, k.name+": "+k.alter())
			return
		}
	}
}

// onSQL runs f with a connection without triggers. If the log has a -wal, it keeps
// it in half of the cases; otherwise SQLite merges it into the file.
func (v *victim) onSQL(f func(db *sql.DB) string) string {
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(v.dir, "log.db"))
	if err != nil {
		v.t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	var triggers []string
	rows, err := db.Query(`SELECT name FROM sqlite_schema WHERE type = 'trigger'`)
	if err == nil {
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				v.t.Fatal(err)
			}
			triggers = append(triggers, name)
		}
		rows.Close()
	}
	for _, name := range triggers {
		db.Exec(`DROP TRIGGER ` + name) // fails if an earlier step damaged the file
	}
	done := f(db)
	files := v.files()
	db.Close()
	if len(files["log.db-wal"]) > 0 && v.dirty && v.random.IntN(2) == 0 {
		v.write(files)
	}
	return done
}

// pickRow returns a random table and one of its rows, by column.
func (v *victim) pickRow(db *sql.DB) (table string, names []string, values []any) {
	var tables []string
	rows, err := db.Query(`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name`)
	if err != nil {
		return "", nil, nil
	}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			v.t.Fatal(err)
		}
		tables = append(tables, name)
	}
	rows.Close()
	if len(tables) == 0 {
		return "", nil, nil
	}
	table = tables[v.random.IntN(len(tables))]
	if v.random.IntN(3) == 0 {
		table = "events"
	}
	var count int
	if err := db.QueryRow(`SELECT count(*) FROM ` + table).Scan(&count); err != nil || count == 0 {
		return "", nil, nil
	}
	offset := v.random.IntN(count)
	if v.random.IntN(4) == 0 {
		offset = count - 1
	}
	rows, err = db.Query(fmt.Sprintf(`SELECT * FROM %s LIMIT 1 OFFSET %d`, table, offset))
	if err != nil {
		return "", nil, nil
	}
	defer rows.Close()
	names, err = rows.Columns()
	if err != nil || !rows.Next() {
		return "", nil, nil
	}
	values = make([]any, len(names))
	into := make([]any, len(names))
	for i := range values {
		into[i] = &values[i]
	}
	if rows.Scan(into...) != nil {
		return "", nil, nil
	}
	return table, names, values
}

// note records that a table was altered that content does not show.
func (v *victim) mark(table string) {
	switch table {
	case "head":
		v.marks[markHead] = true
	case "events", "streams", "sealed", "tiles", "claims", "waiting":
	default: // checkpoints and meta, too: a log with altered ones may be refused
		v.marks[markUnknown] = true
	}
}

// where returns a condition that only the row with these values satisfies.
func where(names []string) string {
	conditions := make([]string, len(names))
	for i, name := range names {
		conditions[i] = name + " IS ?"
	}
	return strings.Join(conditions, " AND ")
}

// short returns the first two values of a row as a text.
func short(values []any) string {
	text := fmt.Sprintf("%v", values[:min(len(values), 2)])
	return text[:min(len(text), 60)]
}

// mutate returns another value.
func (v *victim) mutate(value any) any {
	switch value := value.(type) {
	case int64:
		others := slices.DeleteFunc([]int64{value + 1, value - 1, 0, -value, v.random.Int64(), math.MaxInt64}, func(n int64) bool { return n == value })
		return others[v.random.IntN(len(others))]
	case string:
		return string(v.mutate([]byte(value)).([]byte))
	case []byte:
		if len(value) == 0 {
			return []byte{0}
		}
		b := bytes.Clone(value)
		switch v.random.IntN(6) {
		case 0:
			return b[:v.random.IntN(len(b))]
		case 1:
			return append(b, 'x')
		default:
			b[v.random.IntN(len(b))] ^= 1 << v.random.IntN(7)
			return b
		}
	default:
		return make([]byte, 32)
	}
}

// alterRow changes a column of a row. The change has no effect if a constraint
// forbids it.
func (v *victim) alterRow() string {
	return v.onSQL(func(db *sql.DB) string {
		table, names, values := v.pickRow(db)
		if table == "" {
			return "nothing"
		}
		i := v.random.IntN(len(names))
		res, err := db.Exec(fmt.Sprintf(`UPDATE %s SET %s = ? WHERE %s`, table, names[i], where(names)), append([]any{v.mutate(values[i])}, values...)...)
		return v.altering(table, res, err, table+"."+names[i]+" of "+short(values))
	})
}

// altering marks the table if a statement changed a row.
func (v *victim) altering(table string, res sql.Result, err error, what string) string {
	if err != nil {
		return "nothing"
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return "nothing"
	}
	v.mark(table)
	return what
}

func (v *victim) deleteRow() string {
	return v.onSQL(func(db *sql.DB) string {
		table, names, values := v.pickRow(db)
		if table == "" {
			return "nothing"
		}
		res, err := db.Exec(`DELETE FROM `+table+` WHERE `+where(names), values...)
		return v.altering(table, res, err, table+" "+short(values))
	})
}

// duplicateRow inserts a copy of a row with another value in one column.
func (v *victim) duplicateRow() string {
	return v.onSQL(func(db *sql.DB) string {
		table, names, values := v.pickRow(db)
		if table == "" {
			return "nothing"
		}
		i := v.random.IntN(min(len(names), 2))
		copied := slices.Clone(values)
		copied[i] = v.mutate(values[i])
		if table == "events" { // two unique columns
			copied[0], copied[2] = int64(len(v.truth)+1), v.mutate(values[2])
		}
		res, err := db.Exec(fmt.Sprintf(`INSERT INTO %s VALUES (?%s)`, table, strings.Repeat(", ?", len(names)-1)), copied...)
		return v.altering(table, res, err, table+" "+short(copied))
	})
}

// row is a row of events that an attacker changes.
type row struct {
	position, num int64
	leaf          tlog.Leaf
}

// readRows returns the rows of events in the order of their positions, or nil if
// they cannot be read.
func readRows(db *sql.DB) (all []row) {
	rows, err := db.Query(`SELECT position, num, name, revision, time, id, type, actor, clear, prev, kid, sealed_hash FROM events JOIN streams ON num = stream ORDER BY position`)
	if err != nil {
		return nil
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		var id, prev, kid, hash []byte
		if rows.Scan(&r.position, &r.num, &r.leaf.Stream, &r.leaf.Revision, &r.leaf.Time, &id, &r.leaf.Type, &r.leaf.Actor, &r.leaf.Clear, &prev, &kid, &hash) != nil {
			return nil
		}
		copy(r.leaf.ID[:], id)
		copy(r.leaf.Prev[:], prev)
		copy(r.leaf.KeyID[:], kid)
		copy(r.leaf.SealedHash[:], hash)
		all = append(all, r)
	}
	return all
}

// rewriteEvent changes the clear part of an event, and its leaf hash.
func (v *victim) rewriteEvent() string {
	return v.onSQL(func(db *sql.DB) string {
		rows := readRows(db)
		if len(rows) == 0 {
			return "nothing"
		}
		r := rows[v.random.IntN(len(rows))]
		r.leaf.Clear = []byte(fmt.Sprintf(`{"forged":%d}`, v.random.IntN(100)))
		hash, err := r.leaf.Hash()
		if err != nil {
			return "nothing"
		}
		res, err := db.Exec(`UPDATE events SET clear = ?, leaf_hash = ? WHERE position = ?`, r.leaf.Clear, hash[:], r.position)
		return v.altering("events", res, err, fmt.Sprintf("event %d", r.position))
	})
}

// forgeEvent appends an event with correct hashes, in half of the cases with a
// gap before it.
func (v *victim) forgeEvent() string {
	return v.onSQL(func(db *sql.DB) string {
		rows := readRows(db)
		if len(rows) == 0 {
			return "nothing"
		}
		prev := rows[v.random.IntN(len(rows))]
		for _, r := range rows {
			if r.num == prev.num && r.leaf.Revision > prev.leaf.Revision {
				prev = r
			}
		}
		hash, err := prev.leaf.Hash()
		if err != nil {
			return "nothing"
		}
		r := row{rows[len(rows)-1].position + 1, prev.num, tlog.Leaf{
			Stream: prev.leaf.Stream, Revision: prev.leaf.Revision + 1, Prev: hash, Time: rows[len(rows)-1].leaf.Time + 1,
			Type: "account.forged.v1", Actor: "user:1", Clear: []byte(`{}`),
		}}
		if v.random.IntN(4) == 0 {
			r.position++
		}
		for i := range r.leaf.ID {
			r.leaf.ID[i] = byte(v.random.IntN(256))
		}
		leaf, err := r.leaf.Hash()
		if err != nil {
			return "nothing"
		}
		res, err := db.Exec(`INSERT INTO events (position, stream, revision, time, id, type, actor, clear, prev, leaf_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			r.position, r.num, int64(r.leaf.Revision), r.leaf.Time, r.leaf.ID[:], r.leaf.Type, r.leaf.Actor, r.leaf.Clear, r.leaf.Prev[:], leaf[:])
		return v.altering("events", res, err, fmt.Sprintf("event %d", r.position))
	})
}

// rewriteAll changes an event and makes every hash and tile agree with it. It
// deletes the checkpoints that cover it.
func (v *victim) rewriteAll() string {
	return v.onSQL(func(db *sql.DB) string {
		rows := readRows(db)
		if len(rows) == 0 || rows[len(rows)-1].position != int64(len(rows)) {
			return "nothing"
		}
		at := v.random.IntN(len(rows))
		rows[at].leaf.Clear = []byte(`{"forged":true}`)
		var is appended
		last := map[int64]tlog.Hash{}
		tx, err := db.Begin()
		if err != nil {
			return "nothing"
		}
		defer tx.Rollback()
		for _, r := range rows {
			var prev []byte
			if r.leaf.Revision > 0 {
				r.leaf.Prev = last[r.num]
				prev = r.leaf.Prev[:]
			}
			hash, err := r.leaf.Hash()
			if err != nil {
				return "nothing"
			}
			last[r.num] = hash
			is = append(is, eventContent{leaf: hash})
			if _, err := tx.Exec(`UPDATE events SET clear = ?, prev = ?, leaf_hash = ? WHERE position = ?`, r.leaf.Clear, prev, hash[:], r.position); err != nil {
				return "nothing"
			}
		}
		for line := range strings.Lines(is.tiles()) {
			var level, n int64
			var data []byte
			if _, err := fmt.Sscanf(line, "%d/%d %x", &level, &n, &data); err != nil {
				v.t.Fatal(err)
			}
			if _, err := tx.Exec(`UPDATE tiles SET data = ? WHERE level = ? AND n = ?`, data, level, n); err != nil {
				return "nothing"
			}
		}
		res, err := tx.Exec(`DELETE FROM checkpoints WHERE size > ?`, at)
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			return "nothing"
		}
		v.altering("checkpoints", res, err, "")
		return fmt.Sprintf("from event %d", at+1)
	})
}

// cutEvents deletes the last events, and what covers them.
func (v *victim) cutEvents() string {
	return v.onSQL(func(db *sql.DB) string {
		last := len(v.truth) - 1 - v.random.IntN(5)
		for _, statement := range []string{
			`DELETE FROM sealed WHERE position > ?`, `DELETE FROM events WHERE position > ?`, `DELETE FROM checkpoints WHERE size > ?`,
		} {
			if _, err := db.Exec(statement, last); err != nil {
				return "nothing"
			}
		}
		v.marks[markUnknown] = true
		return fmt.Sprintf("to event %d", last)
	})
}

// swapEvents exchanges the positions of two events.
func (v *victim) swapEvents() string {
	return v.onSQL(func(db *sql.DB) string {
		a := 1 + v.random.IntN(len(v.truth)-1)
		for _, statement := range []string{
			`UPDATE events SET position = 1000000 WHERE position = ?1`, `UPDATE events SET position = ?1 WHERE position = ?1 + 1`, `UPDATE events SET position = ?1 + 1 WHERE position = 1000000`,
		} {
			if _, err := db.Exec(statement, a); err != nil {
				return "nothing"
			}
		}
		return fmt.Sprintf("events %d and %d", a, a+1)
	})
}

// alterFile flips a bit of a file, or truncates it.
func (v *victim) alterFile() string {
	files := v.files()
	name := "log.db"
	if len(files["log.db-wal"]) > 0 && v.random.IntN(2) == 0 {
		name = "log.db-wal"
	}
	b := files[name]
	if len(b) == 0 {
		return "nothing"
	}
	v.marks[markUnknown] = true
	at := v.random.IntN(len(b))
	switch v.random.IntN(4) {
	case 0:
		files[name] = nil
	case 1:
		files[name] = b[:at]
	default:
		b[at] ^= 1 << v.random.IntN(8)
	}
	v.write(files)
	if name == "log.db-wal" {
		v.tear()
	}
	return fmt.Sprintf("%s at %d of %d", name, at, len(b))
}

// tear accepts what SQLite reads from a damaged -wal, if that is a state in which
// the log was after what was signed: a torn -wal is what a crash leaves too.
func (v *victim) tear() {
	if c := v.content(); c.err == nil && c.head < int64(len(v.truth)) && c.head >= v.lastSize() {
		all := v.truth
		v.truth = slices.Clone(all[:c.head])
		if len(v.altered(c)) > 0 {
			v.truth = all
		}
	}
}

// lastSize returns the size of the newest checkpoint that was kept elsewhere.
func (v *victim) lastSize() int64 {
	if v.last == nil {
		return 0
	}
	c, err := tlog.OpenCheckpoint(v.last, v.verifier)
	if err != nil {
		v.t.Fatal(err)
	}
	return c.Size
}

// restoreOlder replaces the log by an earlier copy.
func (v *victim) restoreOlder() string {
	if len(v.older) == 0 {
		return "nothing"
	}
	o := v.older[len(v.older)-1-v.random.IntN(min(len(v.older), 4))]
	v.write(o.files)
	v.dirty = o.dirty
	clear(v.marks)
	if v.lastSize() > int64(len(o.truth)) {
		v.marks[markOlder] = true
	} else {
		// Nothing in the log or in the checkpoint tells that it was longer.
		v.truth = slices.Clone(o.truth)
	}
	return fmt.Sprintf("%d events", len(o.truth))
}

func (v *victim) loseWAL() string {
	files := v.files()
	if len(files["log.db-wal"]) == 0 {
		return "nothing"
	}
	delete(files, "log.db-wal")
	v.write(files)
	v.lost = v.dirty
	return "lost"
}

// examine opens the log after alterations, reads, appends and closes it, and
// verifies it before and after. It reports whether the log may be altered, and
// whether opening it was refused.
func (v *victim) examine() (altered, refused bool) {
	ctx := v.t.Context()
	before := v.content()
	if _, err := os.Stat(filepath.Join(v.dir, "log.db-wal")); v.lost && err == nil && before.err == nil && before.head >= v.lastSize() && before.head < int64(len(v.truth)) {
		// After the -wal was lost, a later alteration made another. Nothing in the
		// log or in the checkpoint tells that it was longer.
		v.truth = v.truth[:before.head]
	}
	positions := v.altered(before)
	altered = before.err != nil || len(positions) > 0 || before.tiles != v.truth.tiles() || before.origin != v.signer.Name() ||
		v.marks[markHead] || v.marks[markOlder]
	_, err := os.Stat(filepath.Join(v.dir, "log.db-wal"))
	// After a kill, a merged -wal cannot be told from a lost one.
	vague := v.marks[markUnknown] || v.dirty && err != nil
	v.verify(before, positions, altered, vague)

	s, err := sqlite.Open(ctx, v.config())
	if err != nil {
		if !altered && !vague {
			v.fault("an unaltered log cannot be opened: %v", err)
		}
		v.outcomes = append(v.outcomes, outcomeRefused)
		return true, true
	}
	if v.marks[markHead] || v.marks[markOlder] || before.err == nil && before.head != int64(len(v.truth)) {
		v.fault("a log of %d events is opened; %d were appended; marks %v", before.head, len(v.truth), v.marks)
	}
	v.proven(s, maps.Clone(positions), altered || vague)
	receipt, appendErr := s.Append(ctx, commit("account-0", eventstore.Any, 1))
	if appendErr != nil && !altered && !vague {
		v.fault("append to an unaltered log: %v", appendErr)
	}
	if err := s.Close(); err != nil && !altered && !vague {
		v.fault("close: %v", err)
	}
	after := v.content()
	if appendErr == nil {
		if receipt.First != eventstore.Position(len(v.truth)+1) {
			v.fault("%d events were appended, and then one at %d", len(v.truth), receipt.First)
		} else if e, ok := after.events[int64(receipt.First)]; ok {
			v.truth = append(v.truth, e)
		} else {
			return true, true // the files cannot be read as they are, so nobody can tell what comes next
		}
	}
	v.dirty = false
	if after.err == nil {
		v.signed(after)
	}
	switch {
	case appendErr != nil:
		v.outcomes = append(v.outcomes, outcomeStopped)
	case altered:
		v.outcomes = append(v.outcomes, outcomeAppended)
	default:
		v.outcomes = append(v.outcomes, outcomeUnaltered)
		if !vague {
			v.last = slices.Concat(v.last[:0:0], after.newest())
		}
	}
	if after.err == nil {
		positions := v.altered(after)
		v.verify(after, positions, altered && (len(positions) > 0 || after.tiles != v.truth.tiles() || after.origin != v.signer.Name()), vague)
	}
	return altered || vague, false
}

// proven checks that s yields no altered event as proven, and proves no altered
// log.
func (v *victim) proven(s *sqlite.Store, positions map[int64]bool, altered bool) {
	ctx := v.t.Context()
	want := map[string]int{}
	for _, e := range v.truth {
		want[e.stream]++
	}
	for _, stream := range slices.Sorted(maps.Keys(want)) {
		count := 0
		var err error
		for rec, e := range s.ReadProven(ctx, stream, 0) {
			if e != nil {
				err = e
				break
			}
			count++
			v.provenEvent(rec)
		}
		if err == nil && count != want[stream] {
			v.fault("ReadProven yields %d of the %d events of %s, and no error", count, want[stream], stream)
		}
		if err != nil && !altered {
			v.fault("ReadProven of an unaltered %s = %v", stream, err)
		}
	}
	head, err := s.Head(ctx)
	if err != nil {
		return
	}
	c := v.content()
	maps.DeleteFunc(positions, func(p int64, _ bool) bool { // a missing sealed part does not change the root
		e, exists := c.events[p]
		return exists && p >= 1 && p <= int64(len(v.truth)) && e.recorded == v.truth[p-1].recorded && e.leaf == v.truth[p-1].leaf
	})
	if err := s.Prove(ctx, head, nil); err == nil && len(positions) > 0 {
		v.fault("Prove proves a log that is altered at %v", slices.Sorted(maps.Keys(positions)))
	}
}

// provenEvent checks that rec is what was appended at its position.
func (v *victim) provenEvent(rec eventstore.Recorded) {
	i := int(rec.Position) - 1
	if i < 0 || i >= len(v.truth) {
		v.fault("an event at %d is proven, but only %d were appended", rec.Position, len(v.truth))
		return
	}
	var kid []byte
	if rec.KeyID != (eventstore.KeyID{}) {
		kid = rec.KeyID[:]
	}
	is := recorded(rec.Stream, int64(rec.Revision), rec.Time.UnixMicro(), rec.ID[:], rec.Type, rec.Actor, rec.Clear, kid)
	if is != v.truth[i].recorded {
		v.fault("the altered event at %d is proven: %q, want %q", rec.Position, is, v.truth[i].recorded)
	}
	if rec.Sealed != nil && string(rec.Sealed) != v.truth[i].sealed {
		v.fault("the altered sealed part at %d is proven", rec.Position)
	}
}

// verify checks that Verify reports alterations and names only places that are
// altered.
func (v *victim) verify(c *content, positions map[int64]bool, altered, vague bool) {
	r, err := sqlite.OpenReader(v.t.Context(), v.dir)
	if err != nil {
		if !altered && !vague {
			v.fault("an unaltered log cannot be opened for reading: %v", err)
		}
		return
	}
	defer r.Close()
	report, err := r.Verify(v.t.Context(), v.trust(), nil)
	if err != nil {
		if !altered && !vague {
			v.fault("Verify of an unaltered log = %v", err)
		}
		return
	}
	// A log with events that no checkpoint covers is never reported as whole.
	if altered && !vague && !v.marks[markHead] && report.OK() && report.Covered == report.Events {
		v.fault("Verify finds nothing, but events %v, or tiles or the origin are altered (%v)", slices.Sorted(maps.Keys(positions)), v.marks)
	}
	if !altered && !vague && !report.OK() {
		v.fault("Verify of an unaltered log finds %v", report.Faults)
	}
	if c.err != nil || vague {
		return
	}
	size := int64(len(v.truth))
	tiles := c.tiles != v.truth.tiles()
	beyond := c.head > size
	for _, f := range report.Faults {
		p := int64(f.Position)
		right := positions[p] || beyond && p > size
		switch f.Kind {
		case sqlite.Altered, sqlite.Missing, sqlite.UnexplainedErasure:
		case sqlite.SealedAltered: // also of an event appended where there was a surplus part
			right = right || p >= size
		case sqlite.Chain: // also names an event whose predecessor is altered
			right = right || p >= 1 && p <= size && positions[v.predecessor(p)]
		case sqlite.TileAltered:
			covers := func(at int64) bool { return at >= p } // a tile above level 0 covers all that the log has
			right = right || tiles || slices.ContainsFunc(slices.Collect(maps.Keys(positions)), covers) || beyond && covers(size+1)
		case sqlite.Root, sqlite.CheckpointAltered:
			right = right || tiles || slices.ContainsFunc(slices.Collect(maps.Keys(positions)), func(at int64) bool { return at <= p })
		case sqlite.Truncated:
			right = right || positions[p+1] || p == c.head && c.head < size
		default: // about the log as a whole
			right = right || p == 0 || p == size || p == size+1 || p == c.head
		}
		if !right {
			v.fault("Verify names %s, but events %v are altered: %s", f, slices.Sorted(maps.Keys(positions)), f.Detail)
			return
		}
	}
}

// predecessor returns the position of the previous event of the stream of the event
// at p, 0 if there is none.
func (v *victim) predecessor(p int64) int64 {
	for at := p - 1; at >= 1; at-- {
		if v.truth[at-1].stream == v.truth[p-1].stream {
			return at
		}
	}
	return 0
}
