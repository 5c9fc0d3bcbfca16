package main

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mayImport is the import table of ARCHITECTURE.md: the packages of this module
// that a package may import. Tests may import more.
var mayImport = map[string][]string{
	"eventstore":                  {},
	"eventstore/tlog":             {"eventstore"},
	"eventstore/seal":             {"eventstore"},
	"eventstore/eventstoretest":   {"eventstore"},
	"eventstore/sqlite":           {"eventstore", "eventstore/tlog"},
	"domain":                      {"eventstore", "eventstore/seal"},
	"domain/importer":             {"domain", "eventstore"},
	"projections":                 {"domain", "eventstore", "eventstore/seal"},
	"projections/projectionstest": {"domain", "eventstore", "eventstore/seal"},
	"projections/webhooks":        {"domain", "eventstore", "eventstore/seal"},
	"projections/scheduler":       {"domain", "eventstore", "projections"},
	"projections/export":          {"domain", "eventstore", "projections"},
	"projections/erasure":         {"domain", "eventstore", "eventstore/seal", "projections", "projections/webhooks"},
	"httpapi":                     {"domain", "domain/importer", "eventstore", "eventstore/seal", "projections", "projections/erasure", "projections/export", "projections/webhooks"},
	"cmd/accountledger/cli":       {},
	"cmd/accountledger/remote":    {"cmd/accountledger/cli", "domain", "eventstore", "httpapi", "projections", "projections/erasure", "projections/webhooks"},
	"cmd/accountledger":           nil, // everything
	"testdata":                    {},
}

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	const module = "accountledger/"
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, listed := mayImport[name]
		for prefix, list := range mayImport {
			if strings.HasPrefix(name, prefix+"/") && !listed {
				allowed, listed = list, true
				break
			}
		}
		if !listed {
			t.Errorf("%s is not in the table", name)
			continue
		}
		for _, path := range p.Imports {
			imported, ours := strings.CutPrefix(path, module)
			if ours && allowed != nil && !slices.Contains(allowed, imported) {
				t.Errorf("%s imports %s", name, imported)
			}
			if name == "eventstore" && strings.Contains(path, ".") {
				t.Errorf("%s imports %s, but the port may import only the standard library", name, path)
			}
			if strings.Contains(path, "labstack/echo") && name != "httpapi" {
				t.Errorf("%s imports %s, which only httpapi may import", name, path)
			}
		}
	}
}

// TestOneFileNamesTheStore tests that only store.go imports the store's package, so
// that another store needs changes only in that file.
func TestOneFileNamesTheStore(t *testing.T) {
	var importing []string
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			if spec.Path.Value == `"accountledger/eventstore/sqlite"` {
				importing = append(importing, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"store.go"}; !slices.Equal(importing, want) {
		t.Errorf("the files %v import eventstore/sqlite, want %v", importing, want)
	}
}
