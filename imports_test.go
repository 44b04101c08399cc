package chancery_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// goPackage is what go list says of a package.
type goPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// TestImportsFollowArchitecture holds the code against the list in ARCHITECTURE.md: a package imports only packages of
// earlier lines, every package is listed, and every listed package exists.
func TestImportsFollowArchitecture(t *testing.T) {
	order := listedPackages(t)
	packages := goList(t)
	if len(packages) < 10 {
		t.Fatalf("go list found %d packages; the check would prove nothing", len(packages))
	}
	testsOnly := []string{"chancery/internal/pkitest", "chancery/internal/authoritytest"}
	for _, p := range packages {
		if p.ImportPath == "chancery" {
			continue
		}
		place := slices.Index(order, p.ImportPath)
		if place < 0 {
			t.Errorf("%s is not listed in ARCHITECTURE.md", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if !strings.HasPrefix(imported, "chancery/") {
				continue
			}
			switch {
			case slices.Contains(testsOnly, imported) && !slices.Contains(testsOnly, p.ImportPath):
				t.Errorf("%s imports %s outside its tests", p.ImportPath, imported)
			case slices.Index(order, imported) >= place:
				t.Errorf("%s may not import %s: it stands on the same or a later line", p.ImportPath, imported)
			}
			if p.ImportPath == "chancery/client" {
				t.Errorf("client may import nothing of ours, and imports %s", imported)
			}
		}
	}
	for _, want := range order {
		if !slices.ContainsFunc(packages, func(p goPackage) bool { return p.ImportPath == want }) {
			t.Errorf("%s is listed in ARCHITECTURE.md and does not exist", want)
		}
	}
}

// TestZlintStaysInProfile keeps the slow linter out of the issuance path (law 1).
func TestZlintStaysInProfile(t *testing.T) {
	seen := false
	for _, p := range goList(t) {
		for _, imported := range p.Imports {
			if strings.HasPrefix(imported, "github.com/zmap/zlint") {
				seen = true
				if p.ImportPath != "chancery/internal/authority/profile" {
					t.Errorf("%s imports %s", p.ImportPath, imported)
				}
			}
		}
	}
	if !seen {
		t.Error("nothing imports zlint; profiles would be saved unlinted")
	}
}

func listedPackages(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "## The packages")
	if !ok {
		t.Fatal(`ARCHITECTURE.md has no section "The packages"`)
	}
	parts := strings.SplitN(rest, "```", 3)
	if len(parts) < 3 {
		t.Fatal("the package list is not fenced")
	}
	var order []string
	for line := range strings.Lines(parts[1]) {
		if fields := strings.Fields(line); len(fields) > 1 {
			order = append(order, "chancery/"+fields[0])
		}
	}
	return order
}

func goList(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
