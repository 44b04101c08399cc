package api

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"chancery/client"
	"github.com/danielgtaylor/huma/v2"
	"github.com/google/go-cmp/cmp"
)

// plainOrders are bodies, and whether they are plain.
var plainOrders = map[string]bool{
	`{"profile":"server","csr":"-----BEGIN\nAAAA\n-----END\n"}`:                    true,
	" {\n\"issuer\" : \"x\" ,\t\"pool\":\"y\",\"profile\":\"z\",\"csr\":\"c\"\r} ": true,
	`{"profile":"` + strings.Repeat("p", 255) + `"}`:                               true,
	`{"profile":"` + strings.Repeat("p", 256) + `"}`:                               false,
	`{"profile":"a","profile":"b"}`:                                                false,
	`{"profile":"a","Profile":"b"}`:                                                false,
	`{"profile":""}`:                                                               false,
	`{"profile":null}`:                                                             false,
	`{"profile":"a\tb"}`:                                                           false,
	`{"profile":"a\u0062"}`:                                                        false,
	`{"profile":"a\\nb"}`:                                                          false,
	`{"profile":"a\"}`:                                                             false,
	`{"profile":"ä"}`:                                                              false,
	"{\"profile\":\"a\nb\"}":                                                       false,
	"{\"profile\":\"a\x7f\"}":                                                      false,
	`{"profile":"a","dry_run":true}`:                                               false,
	`{"profile":"a","names":{}}`:                                                   false,
	`{"profile":"a",}`:                                                             false,
	`{"profile":"a"`:                                                               false,
	`{"profile":"a"}}`:                                                             false,
	`{"profile":"a"} {}`:                                                           false,
	`{"profile" "a"}`:                                                              false,
	`{profile:"a"}`:                                                                false,
	`["profile","a"]`:                                                              false,
	`{}`:                                                                           false,
	`{"`:                                                                           false,
	`"`:                                                                            false,
	``:                                                                             false,
}

// schemaOf is what huma holds a body against.
func schemaOf[T any]() (huma.Registry, *huma.Schema) {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	return registry, registry.Schema(reflect.TypeFor[T](), false, "")
}

// checkPlain holds a body that plainOrder takes against the schema and against encoding/json.
func checkPlain(t *testing.T, registry huma.Registry, schema *huma.Schema, body []byte) bool {
	t.Helper()
	got, ok := plainOrder(body)
	if !ok {
		return false
	}
	var value any
	var want client.IssueRequest
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&want); err != nil || d.More() {
		t.Fatalf("%q is taken, and is: %v", body, err)
	}
	if err := json.Unmarshal(body, &value); err != nil {
		t.Fatalf("%q is taken, and is: %v", body, err)
	}
	result := &huma.ValidateResult{}
	huma.Validate(registry, schema, huma.NewPathBuffer([]byte{}, 0), huma.ModeWriteToServer, value, result)
	if len(result.Errors) > 0 {
		t.Fatalf("%q is taken, and the schema says: %v", body, result.Errors)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%q is read as another (-want +got):\n%s", body, diff)
	}
	return true
}

func TestPlainOrdersAreWhatTheSchemaSays(t *testing.T) {
	t.Parallel()
	registry, schema := schemaOf[client.IssueRequest]()
	for body, want := range plainOrders {
		if got := checkPlain(t, registry, schema, []byte(body)); got != want {
			t.Errorf("%q is plain: %v, want %v", body, got, want)
		}
	}
	result := &huma.ValidateResult{}
	huma.Validate(registry, schema, huma.NewPathBuffer([]byte{}, 0), huma.ModeWriteToServer, map[string]any{"profile": strings.Repeat("p", 256)}, result)
	if len(result.Errors) == 0 {
		t.Error("the schema of this test refuses nothing")
	}
}

func FuzzPlainOrder(f *testing.F) {
	for body := range plainOrders {
		f.Add([]byte(body))
	}
	registry, schema := schemaOf[client.IssueRequest]()
	f.Fuzz(func(t *testing.T, body []byte) { checkPlain(t, registry, schema, body) })
}

// TestPlainKeys holds keys against what the schema says of them.
func TestPlainKeys(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]bool{
		"k": true, "!~": true, strings.Repeat("k", 255): true, "": false, "a b": false, "ä": false, "\x7f": false, strings.Repeat("k", 256): false,
	} {
		if got := plainKey(key); got != want {
			t.Errorf("%q: %v", key, got)
		}
	}
	field, _ := reflect.TypeFor[Keyed]().FieldByName("IdempotencyKey")
	if tag := string(field.Tag); !strings.Contains(tag, `minLength:"1" maxLength:"255" pattern:"^[!-~]+$"`) {
		t.Errorf("the schema says otherwise: %s", tag)
	}
}
