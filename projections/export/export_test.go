package export

import (
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"accountledger/domain"
	"accountledger/projections"
)

// TestCSVColumns checks that every member of an account and of a profile has a
// column, so that an export does not omit a new member.
func TestCSVColumns(t *testing.T) {
	members := func(types ...any) (names []string) {
		for _, v := range types {
			for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
				if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
					names = append(names, name)
				}
			}
		}
		return names
	}
	sorted := func(names []string) []string { return slices.Sorted(slices.Values(names)) }
	if diff := cmp.Diff(sorted(members(domain.Account{})), sorted(append([]string{"sub"}, ofAccount...))); diff != "" {
		t.Errorf("account (-member +column):\n%s", diff)
	}
	if diff := cmp.Diff(sorted(members(domain.Profile{})), sorted(ofIdentity[1:])); diff != "" {
		t.Errorf("profile (-member +column):\n%s", diff)
	}
}

func TestCSVAccounts(t *testing.T) {
	var out bytes.Buffer
	w := csvAccounts(&out, Columns)
	for _, document := range []string{
		`{"sub":"s1","identities":[{"provider":"self","email":"a,b@example.com","email_verified":true,"family_name":"O\"Neill\nLord","address":{"country":"DE"}},{"provider":"google"}],"customFields":{"tier":"gold"},"revision":3}`,
		`{"sub":"s2","identities":[],"erasedTime":"2026-01-01T00:00:00Z","position":7}`,
	} {
		if err := w.write(projections.AccountRow{Sub: document[8:10], JSON: []byte(document)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	records, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(records) != 3 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	for n, want := range []map[string]string{
		{"sub": "s1", "provider": "self", "email": "a,b@example.com", "email_verified": "true", "family_name": "O\"Neill\nLord",
			"address": `{"country":"DE"}`, "customFields": `{"tier":"gold"}`, "revision": "3", "erasedTime": "", "gender": ""},
		{"sub": "s2", "provider": "", "email_verified": "", "erasedTime": "2026-01-01T00:00:00Z", "position": "7"},
	} {
		for column, value := range want {
			if got := records[n+1][slices.Index(records[0], column)]; got != value {
				t.Errorf("%s of account %d = %q, want %q", column, n+1, got, value)
			}
		}
	}
}

// TestParquet checks that a written file can be read, with the columns' types.
func TestParquet(t *testing.T) {
	const n = rowGroup + 10 // more than one row group
	path := filepath.Join(t.TempDir(), "accounts.parquet")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := parquetAccounts(f, Columns, 17, 3)
	for i := range n {
		document := fmt.Sprintf(`{"sub":"s%d","userStatus":"VERIFIED","identities":[{"provider":"self","email":"a%d@example.com","email_verified":%t}],"customFields":{"tier":"gold"},"createdTime":"2026-11-22T12:00:00.000001Z","revision":%d}`, i, i, i%2 == 0, i)
		if i == n-1 {
			document = `{"sub":"gone","identities":[],"erasedTime":"2026-11-22T12:00:00Z","revision":2}`
		}
		if err := w.write(projections.AccountRow{Sub: "s", JSON: []byte(document)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	type account struct {
		Sub      string    `parquet:"sub"`
		Email    *string   `parquet:"email,optional"`
		Verified *bool     `parquet:"email_verified,optional"`
		Created  time.Time `parquet:"createdTime,optional,timestamp(microsecond)"`
		Fields   string    `parquet:"customFields,optional,json"`
		Gender   *string   `parquet:"gender,optional"`
		Revision *int64    `parquet:"revision,optional"`
	}
	rows, err := parquet.ReadFile[account](path)
	if err != nil || len(rows) != n {
		t.Fatalf("%d rows, %v; want %d", len(rows), err, n)
	}
	if diff := cmp.Diff(account{"s1", new("a1@example.com"), new(false), time.Date(2026, 11, 22, 12, 0, 0, 1000, time.UTC), `{"tier":"gold"}`, nil, new(int64(1))}, rows[1]); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
	if last := rows[n-1]; last.Sub != "gone" || last.Email != nil || last.Verified != nil || last.Fields != "" {
		t.Errorf("the erased account is %+v", last)
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		t.Fatal(err)
	}
	file, err := parquet.OpenFile(in, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	if at, _ := file.Lookup(metaPosition); at != "17" || len(file.RowGroups()) != 2 {
		t.Errorf("the file has position %q and %d row groups; want 17 and 2", at, len(file.RowGroups()))
	}
	var targetAccounts []Held
	if err := ReadTarget(path, func(h Held) { targetAccounts = append(targetAccounts, h) }); err != nil || len(targetAccounts) != n-1 || targetAccounts[5] != (Held{"s5", 5}) {
		t.Errorf("ReadTarget: %d accounts, %v", len(targetAccounts), err)
	}
}

func TestReadTarget(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []Held
		fails      bool
	}{
		{"a.ndjson", "{\"sub\":\"s1\",\"revision\":2,\"x\":1}\n{\"sub\":\"s2\",\"revision\":0,\"erasedTime\":\"2026-01-01T00:00:00Z\"}\n", []Held{{"s1", 2}}, false},
		{"a.csv", "name,revision,sub\nAda,2,s1\n", []Held{{"s1", 2}}, false},
		{"a.ndjson", "{\"sub\":\"s1\"}\n", nil, true}, {"a.ndjson", "{\"sub\":\"s1\",\"revision\":2}\nno", []Held{{"s1", 2}}, true}, {"a.csv", "sub\ns1\n", nil, true}, {"a.csv", "sub,revision\ns1,x\n", nil, true}, {"a.xml", "", nil, true}, {"a.parquet", "PAR1", nil, true},
	} {
		path := filepath.Join(t.TempDir(), tt.name)
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var got []Held
		err := ReadTarget(path, func(h Held) { got = append(got, h) })
		if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.fails {
			t.Errorf("%s %q: %v (-want +got):\n%s", tt.name, tt.text, err, diff)
		}
	}
}

// TestReadTargetNoRevision checks that a Parquet file with an account without a
// revision is refused, as in the other formats, instead of read as revision 0.
func TestReadTargetNoRevision(t *testing.T) {
	type account struct {
		Sub      string `parquet:"sub"`
		Revision *int64 `parquet:"revision,optional"`
	}
	path := filepath.Join(t.TempDir(), "a.parquet")
	if err := parquet.WriteFile(path, []account{{"s1", nil}}); err != nil {
		t.Fatal(err)
	}
	if err := ReadTarget(path, func(h Held) { t.Errorf("read %v", h) }); !errors.Is(err, errNoRevision) {
		t.Errorf("ReadTarget = %v, want %v", err, errNoRevision)
	}
}

// TestSum checks that the checksums are as documented. To compute one by hand:
// printf 's1:0' | sha256sum.
func TestSum(t *testing.T) {
	var one, both, other Sum
	one.Add("s1", 0)
	both.Add("s1", 0)
	both.Add("s2", 3)
	other.Add("s2", 3)
	other.Add("s1", 0)
	digest := sha256.Sum256([]byte("s1:0"))
	if one.Checksum() != hex.EncodeToString(digest[:8]) || both != other || both == one || both.Accounts != 2 {
		t.Errorf("sums %s, %s, %s", one.Checksum(), both.Checksum(), other.Checksum())
	}
	digest = sha256.Sum256([]byte("s1"))
	for digits := 1; digits <= maxShardDigits; digits++ {
		if got := Shard("s1", digits); got != hex.EncodeToString(digest[:])[:digits] || !IsShard(got) {
			t.Errorf("shard of %d digits is %q", digits, got)
		}
	}
}
