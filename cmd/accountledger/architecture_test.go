package main

import (
	"encoding/json"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mayImport is the import table of ARCHITECTURE.md: the packages of this module
// that a package may import. Tests may import more.
var mayImport = map[string][]string{
	"eventstore":                     {},
	"eventstore/tlog":                {"eventstore"},
	"eventstore/seal":                {"eventstore"},
	"eventstore/eventstoretest":      {"eventstore"},
	"eventstore/sqlite":              {"eventstore", "eventstore/tlog"},
	"domain":                         {"eventstore", "eventstore/seal"},
	"domain/importer":                {"domain", "eventstore"},
	"projections":                    {"domain", "eventstore", "eventstore/seal"},
	"projections/projectionstest":    {"domain", "eventstore", "eventstore/seal"},
	"projections/webhooks":           {"domain", "eventstore", "eventstore/seal", "projections", "projections/webhooks/transport", "projections/webhooks/wire"},
	"projections/webhooks/transport": {"domain"},
	"projections/webhooks/wire":      {"domain", "eventstore"},
	"projections/scheduler":          {"domain", "eventstore", "projections"},
	"projections/export":             {"domain", "eventstore", "projections"},
	"projections/erasure":            {"domain", "eventstore", "eventstore/seal", "projections", "projections/webhooks"},
	"httpapi":                        {"domain", "domain/importer", "eventstore", "eventstore/seal", "projections", "projections/erasure", "projections/export", "projections/webhooks"},
	"cmd/accountledger/cli":          {},
	"cmd/accountledger/remote":       {"cmd/accountledger/cli", "domain", "eventstore", "httpapi", "projections", "projections/erasure", "projections/webhooks"},
	"cmd/accountledger":              nil, // everything
	"testdata":                       {},
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

// readsStoredType lists the functions outside eventstore that use the Type of a
// recorded event otherwise than as an argument of followsUpcasters, and why.
var readsStoredType = map[string]string{
	"domain.Decode":       "binds the sealed part to it",
	"projections.decode":  "binds the sealed part to it",
	"erasure.Certificate": "shows the stored type",
	"main.printEvent":     "shows the stored type",
}

// followsUpcasters are the functions of domain that accept a stored type.
var followsUpcasters = []string{"CurrentType", "DecodeEvent", "ErasedKey"}

// TestStoredTypes finds code that uses the stored type of an event instead of its
// current type. Such code would miss events recorded before a type was renamed.
func TestStoredTypes(t *testing.T) {
	var found []string
	for _, p := range typeChecked(t) {
		if strings.HasPrefix(p.Path(), "accountledger/eventstore") {
			continue // stores do not interpret types
		}
		for _, file := range p.files {
			passed := map[ast.Expr]bool{}
			function := ""
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					function = p.Name() + "." + n.Name.Name
				case *ast.CallExpr:
					if f := callee(p.info, n); f != nil && f.Pkg() != nil && f.Pkg().Path() == "accountledger/domain" && slices.Contains(followsUpcasters, f.Name()) {
						passed[n.Args[0]] = true
					}
				case *ast.SelectorExpr:
					v, ok := p.info.Uses[n.Sel].(*types.Var)
					if ok && v.Name() == "Type" && v.IsField() && v.Pkg().Path() == "accountledger/eventstore" && !passed[n] && readsStoredType[function] == "" {
						found = append(found, p.fset.Position(n.Pos()).String()+" in "+function)
					}
				}
				return true
			})
		}
	}
	for _, at := range found {
		t.Errorf("%s reads a stored type; use domain.CurrentType or domain.Is", at)
	}
}

// typeChecked parses and type-checks the packages of the module, without tests.
func typeChecked(t *testing.T) []checkedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles,CgoFiles", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	type listed struct {
		ImportPath, Dir, Export string
		GoFiles, CgoFiles       []string
	}
	exports := map[string]string{}
	var ours []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		exports[p.ImportPath] = p.Export
		if strings.HasPrefix(p.ImportPath, "accountledger/") {
			ours = append(ours, p)
		}
	}
	fset := token.NewFileSet()
	imports := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	var all []checkedPackage
	for _, p := range ours {
		c := checkedPackage{fset: fset, info: &types.Info{Uses: map[*ast.Ident]types.Object{}}}
		for _, name := range append(p.GoFiles, p.CgoFiles...) {
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			c.files = append(c.files, file)
		}
		if c.Package, err = (&types.Config{Importer: imports, FakeImportC: true}).Check(p.ImportPath, fset, c.files, c.info); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

type checkedPackage struct {
	*types.Package
	fset  *token.FileSet
	files []*ast.File
	info  *types.Info
}

// callee returns the function that call calls.
func callee(info *types.Info, call *ast.CallExpr) types.Object {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return info.Uses[f]
	case *ast.SelectorExpr:
		return info.Uses[f.Sel]
	}
	return nil
}
