package httpapi

import (
	"context"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"
)

// TestOpenAPI compares the served document with the committed one, so that
// reviews show changes of the API. -update rewrites the committed document.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	l := start(t)
	got := l.want(t, 200, "GET", "/openapi.json", "", "Authorization: ").body
	if *update {
		check(t, os.WriteFile("openapi.json", got, 0o644))
	}
	want, err := os.ReadFile("openapi.json")
	check(t, err)
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("the API differs from openapi.json; if the change is intended, run go test -update (-committed +served):\n%s", diff)
	}
	document, err := openapi3.NewLoader().LoadFromData(got)
	check(t, err)
	if err := document.Validate(context.Background()); err != nil {
		t.Errorf("not a valid document: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(document.Components.Schemas)) {
		schema := document.Components.Schemas[name].Value
		for _, member := range slices.Sorted(maps.Keys(schema.Properties)) {
			if p := schema.Properties[member]; p.Ref == "" && p.Value.Description == "" {
				t.Errorf("the member %s of %s has no description", member, name)
			}
		}
	}
	for path, item := range document.Paths.Map() {
		for method, op := range item.Operations() {
			if op.Summary == "" || op.Description == "" || op.Security == nil {
				t.Errorf("%s %s lacks a summary, a description or its security", method, path)
			}
			for _, tag := range op.Tags {
				if document.Tags.Get(tag) == nil {
					t.Errorf("%s %s has the tag %s, which is not described", method, path, tag)
				}
			}
			for _, p := range op.Parameters {
				if p.Value.Description == "" {
					t.Errorf("the parameter %s of %s %s has no description", p.Value.Name, method, path)
				}
			}
		}
	}
}
