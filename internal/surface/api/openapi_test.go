package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/client"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGoldenOpenAPIDocument keeps docs/openapi.json what the node serves: a change of the API shows in the diff.
func TestGoldenOpenAPIDocument(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	status, header, served := a.request("GET", client.Prefix+"/openapi.json", "", "")
	if status != 200 || !strings.HasPrefix(header.Get("Content-Type"), "application/openapi+json") {
		t.Fatalf("%d %s", status, header.Get("Content-Type"))
	}
	golden := filepath.Join("..", "..", "..", "docs", "openapi.json")
	want := append(bytes.TrimSpace(served), '\n')
	if *update {
		must(t, os.MkdirAll(filepath.Dir(golden), 0o755))
		must(t, os.WriteFile(golden, want, 0o644))
	}
	have, err := os.ReadFile(golden)
	must(t, err)
	if !bytes.Equal(have, want) {
		t.Fatal("docs/openapi.json is not what the node serves; go test ./internal/surface/api -run OpenAPI -update writes it")
	}
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]struct{ OperationID, Summary string }
		Components struct{ Schemas map[string]json.RawMessage }
	}
	must(t, json.Unmarshal(served, &doc))
	ids := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, o := range methods {
			if o.OperationID == "" || o.Summary == "" || ids[o.OperationID] {
				t.Errorf("%s %s: operationId %q, summary %q", method, path, o.OperationID, o.Summary)
			}
			ids[o.OperationID] = true
		}
	}
	if doc.OpenAPI != "3.1.0" || len(ids) < 60 || len(doc.Components.Schemas) < 30 {
		t.Fatalf("OpenAPI %s with %d operations and %d schemas", doc.OpenAPI, len(ids), len(doc.Components.Schemas))
	}
	if strings.Contains(string(served), "$schema") || strings.Contains(string(served), "ErrorModel") {
		t.Fatal("what the library adds of its own is in the document")
	}
}
