package importer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func TestRows(t *testing.T) {
	t.Parallel()
	const bom = "\ufeff"
	for _, tt := range []struct {
		name, settings, file, input string
		want                        []string // records as JSON, or the faults of rows
		err                         string
	}{
		{"json", "", "x.json", ` [ {"a":1.0} , {"a":[null,{}]}, 3 ] `, []string{`{"a":1.0}`, `{"a":[null,{}]}`, `3`}, ""},
		{"json: byte order mark", "", "x.json", bom + `[{"a":"é"}]`, []string{`{"a":"é"}`}, ""},
		{"json: empty list", "", "x.json", `[]`, nil, ""},
		{"json: below", "records: /a/b~1c", "x.json", `{"x":[{"a":0}],"a":{"z":0,"b/c":[{"a":1}]},"y":{}}`, []string{`{"a":1}`}, ""},
		{"json: not there", "records: /users", "x.json", `{"user":[]}`, nil, `no member "users"`},
		{"json: no list", "", "x.json", `{"users":[]}`, nil, "set records in the mapping"},
		{"json: two documents", "", "x.json", `[1][2]`, []string{"1"}, "continues after the JSON document"},
		{"json: lines", "", "x.json", "{\"a\":1}\n{\"a\":2}\n", nil, "ndjson"},
		{"json: cut", "", "x.json", `[{"a":1},{"secret"`, []string{`{"a":1}`}, "after row 1: the JSON is truncated"},
		{"json: cut behind the list", "records: /a", "x.json", `{"a":[1],"b":`, []string{"1"}, "truncated"},
		{"json: broken", "", "x.json", `[{"a":1},{"a":secret}]`, []string{`{"a":1}`}, "after row 1: invalid JSON"},
		{"json: member twice", "", "x.json", `[{"secret":1,"secret":2}]`, nil, "two members with the same name"},
		{"ndjson", "", "x.ndjson", "{\"a\":1}\n\n  {\"a\":2}\r\n[3]", []string{`{"a":1}`, `{"a":2}`, `[3]`}, ""},
		{"ndjson: continues after an invalid line", "", "x.jsonl", "{\"a\":1}\n{oops\n{\"a\":1,\"a\":2}\n1 2\n{\"a\":2}\n",
			[]string{`{"a":1}`, "the line must be", "the line must be", "the line must be", `{"a":2}`}, ""},
		{"ndjson: too long", "", "x.ndjson", `"` + strings.Repeat("x", maxLine+1<<17) + "\"\n{\"a\":2}", []string{"longer than", `{"a":2}`}, ""},
		{"csv", "", "x.csv", "a,b c\n1,\"x,\ny\"\n2,\n", []string{`{"a":"1","b c":"x,\ny"}`, `{"a":"2","b c":""}`}, ""},
		{"csv: semicolon, mark", `delimiter: ";"`, "x.csv", bom + "a;b\n1;2\n", []string{`{"a":"1","b":"2"}`}, ""},
		{"csv: columns", "", "x.csv", "a,b\n1\n1,2,3\n1,2\n", []string{"as many columns", "as many columns", `{"a":"1","b":"2"}`}, ""},
		{"csv: not UTF-8", "", "x.csv", "a\n\xff\nb\n", []string{"must be valid UTF-8", `{"a":"b"}`}, ""},
		{"csv: quote", "", "x.csv", "a\n1\nx\"secret\n", []string{`{"a":"1"}`}, "invalid CSV in line 3"},
		{"csv: same name", "", "x.csv", "a,a\n", nil, "column 2 of the header"},
		{"csv: empty", "", "x.csv", "", nil, "has no header"},
		{"no format", "", "x.txt", "", nil, "format is required"},
		{"format in the mapping", "format: csv", "-", "a\n1\n", []string{`{"a":"1"}`}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := ParseMapping([]byte("source: s\nkey: /id\nidentities: [{provider: self}]\n" + tt.settings + "\n"))
			check(t, err)
			for _, reader := range []io.Reader{strings.NewReader(tt.input), iotest.OneByteReader(strings.NewReader(tt.input))} {
				var got []string
				var failed error
				for row, err := range m.rows(tt.file, reader) {
					if failed = err; err != nil {
						break
					}
					if row.fault != "" {
						got = append(got, row.fault)
						continue
					}
					encoded, err := json.Marshal(row.record) // sorts the members
					check(t, err)
					got = append(got, string(encoded))
				}
				for i := range min(len(got), len(tt.want)) {
					if !json.Valid([]byte(tt.want[i])) && strings.Contains(got[i], tt.want[i]) {
						got[i] = tt.want[i]
					}
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("rows (-want +got):\n%s", diff)
				}
				if text := fmt.Sprint(failed); (failed == nil) != (tt.err == "") || !strings.Contains(text, tt.err) && failed != nil || strings.Contains(text, "secret") {
					t.Errorf("error = %v, want %q and nothing of the input", failed, tt.err)
				}
			}
		})
	}
}

func TestRowsReadError(t *testing.T) {
	t.Parallel()
	broken := errors.New("the disk is gone")
	for _, name := range []string{"x.json", "x.ndjson", "x.csv"} {
		m, err := ParseMapping([]byte("source: s\nkey: /id\nidentities: [{provider: self}]\n"))
		check(t, err)
		var got error
		for _, err := range m.rows(name, io.MultiReader(strings.NewReader("["), iotest.ErrReader(broken))) {
			got = err
		}
		if !errors.Is(got, broken) {
			t.Errorf("%s: the rows end with %v, want the reader's error", name, got)
		}
	}
}
