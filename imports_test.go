package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/casfs/casfs"

// ours says which packages of the module each may import: the arrows of
// docs/DESIGN.md. Names are relative to the module; "" is the program itself. A name stands for
// the packages below it, too, unless they have a line of their own.
var ours = map[string][]string{
	"":                     {"internal/cli"},
	"internal/cli":         {"fs", "jobs", "cas", "cas/local", "cache/catalog", "internal/control", "internal/cli/version"},
	"internal/cli/version": {},
	"internal/control":     {"jobs", "cas"},
	"internal/deps":        {},
	"internal/bench":       {"cache/catalog"}, // fills catalogs of a million entries directly
	"fs/internal/loopback": {},
	"internal/built":       {}, // for tests
	"internal/noise":       {}, // for tests
	"internal/e2e":         {}, // tests only
	"internal/crash":       {}, // tests only
	"fs":                   {"jobs", "cas", "cache/catalog", "cache/content"},
	"jobs":                 {"cas", "cache", "cache/catalog", "cache/content"},
	"cache":                {},
	"cache/catalog":        {"cache/journal"},
	"cache/journal":        {},
	"cache/content":        {},
	"cas":                  {},
	"cas/local":            {}, // shares no code with cas, so that client and server share no bug
	"cas/castest":          {"cas", "cas/local"},
}

// theirs says which packages alone may import something from outside.
var theirs = map[string][]string{
	"github.com/dgraph-io/badger": {"cache/catalog"},
	"github.com/hanwen/go-fuse":   {"fs", "fs/internal/loopback"},
	"github.com/spf13/pflag":      {"internal/cli"},
	"github.com/spf13/cobra":      {"internal/cli"},
	"net/http":                    {"cas", "cas/local", "cas/castest", "internal/control"},
}

func TestImportDirections(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var pkg struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&pkg); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		name := strings.TrimPrefix(strings.TrimPrefix(pkg.ImportPath, module), "/")
		allowed, rule := ours[name]
		for up := name; !rule && strings.Contains(up, "/"); {
			up = up[:strings.LastIndex(up, "/")]
			allowed, rule = ours[up]
		}
		if !rule {
			t.Errorf("package %q has no line in the table of allowed imports", name)
		}
		for _, imp := range pkg.Imports {
			if imp == module || strings.HasPrefix(imp, module+"/") {
				rel := strings.TrimPrefix(strings.TrimPrefix(imp, module), "/")
				// A package may use its own internal parts.
				if !slices.Contains(allowed, rel) && !strings.HasPrefix(rel, name+"/internal/") {
					t.Errorf("%s imports %s, against the direction of the layers", name, rel)
				}
			}
			if name == "internal/deps" {
				continue // a list of dependencies, linked into nothing
			}
			for outside, users := range theirs {
				if (imp == outside || strings.HasPrefix(imp, outside+"/")) && !slices.Contains(users, name) {
					t.Errorf("%s imports %s, which belongs to %s alone", name, imp, strings.Join(users, ", "))
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d packages were looked at", seen)
	}
}
