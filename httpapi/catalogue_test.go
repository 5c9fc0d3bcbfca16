package httpapi

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"accountledger/domain"
)

// eventSchemas returns the compiled schemas of the catalogue by public name.
var eventSchemas = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	entries, err := Catalogue()
	if err != nil {
		return nil, err
	}
	all := map[string]*jsonschema.Schema{}
	for _, e := range entries {
		if all[e.Name], err = compiled(e.Name+".json", e.Schema); err != nil {
			return nil, err
		}
	}
	return all, nil
})

func compiled(name string, schema []byte) (*jsonschema.Schema, error) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(name, document); err != nil {
		return nil, err
	}
	return c.Compile(name)
}

// checkEvent validates a public event of the feed against its schema.
func checkEvent(event []byte) error {
	schemas, err := eventSchemas()
	if err != nil {
		return err
	}
	var e struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(event, &e); err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(event))
	if err != nil {
		return err
	}
	return schemas[e.Type].Validate(value)
}

// TestEventSchemas validates every public event against its schema, with and
// without its personal data, and checks that the schemas refuse wrong events.
func TestEventSchemas(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../testdata/events/*.json")
	check(t, err)
	checked := map[string]bool{}
	for _, file := range files {
		var golden struct {
			Type     string         `json:"type"`
			Clear    jsontext.Value `json:"clear"`
			Personal jsontext.Value `json:"personal"`
		}
		text, err := os.ReadFile(file)
		check(t, err)
		check(t, json.Unmarshal(text, &golden))
		for _, personal := range []jsontext.Value{golden.Personal, nil} {
			e, meta, err := domain.DecodeEvent(golden.Type, golden.Clear, personal)
			check(t, err)
			stream := domain.AccountStream(domain.NewID().String())
			if !strings.HasPrefix(golden.Type, "account.") {
				stream = domain.ConfigStream
			}
			public, err := domain.Public(domain.Entry{ID: domain.NewID(), Type: golden.Type, Stream: stream, Time: time.Unix(0, 0).UTC(), Meta: meta, Event: e}, 0)
			check(t, err)
			for _, p := range public {
				checked[p.Type] = true
				text, err := json.Marshal(p)
				check(t, err)
				if err := checkEvent(text); err != nil {
					t.Errorf("%s of %s: %v\n%s", p.Type, filepath.Base(file), err, text)
				}
				for _, wrong := range []string{
					strings.Replace(string(text), `"id":`, `"unheardOf":1,"id":`, 1),
					strings.Replace(string(text), `"data":{`, `"data":{"unheardOf":1,`, 1),
					strings.Replace(string(text), `"sequence":0`, `"sequence":"0"`, 1),
				} {
					if checkEvent([]byte(wrong)) == nil {
						t.Errorf("the schema of %s accepts %s", p.Type, wrong)
					}
				}
			}
		}
	}
	// Public events with another name than their golden event are not found.
	if missed := len(domain.PublicNames) - len(checked); missed > 8 {
		t.Errorf("%d public events have no golden event", missed)
	}
}

// TestAsyncAPI compares the served document with the committed one and validates
// it against the schema of AsyncAPI. -update rewrites the committed document.
func TestAsyncAPI(t *testing.T) {
	t.Parallel()
	l := start(t)
	got := l.want(t, 200, "GET", "/asyncapi.json", "", "Authorization: ").body
	if *update {
		check(t, os.WriteFile("asyncapi.json", got, 0o644))
	}
	want, err := os.ReadFile("asyncapi.json")
	check(t, err)
	if diff := gocmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("the API differs from asyncapi.json; if the change is intended, run go test -update (-committed +served):\n%s", diff)
	}
	rules, err := os.ReadFile("testdata/asyncapi-3.0.0.schema.json")
	check(t, err)
	schema, err := compiled("asyncapi.schema.json", rules)
	check(t, err)
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(got))
	check(t, err)
	if err := schema.Validate(document); err != nil {
		t.Errorf("not a valid document: %v", err)
	}
	delete(document.(map[string]any), "channels")
	document.(map[string]any)["chanels"] = map[string]any{}
	if schema.Validate(document) == nil {
		t.Error("the schema of AsyncAPI accepts anything")
	}
	// A schema cannot check that every reference resolves.
	var root any
	check(t, json.Unmarshal(got, &root))
	var refs func(v any)
	refs = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok && resolve(root, ref) == nil {
				t.Errorf("%s does not resolve", ref)
			}
			for _, name := range slices.Sorted(maps.Keys(v)) {
				refs(v[name])
			}
		case []any:
			for _, e := range v {
				refs(e)
			}
		}
	}
	refs(root)
}

func resolve(root any, ref string) any {
	at := root
	for token := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		object, _ := at.(map[string]any)
		at = object[token]
	}
	return at
}
