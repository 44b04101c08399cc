package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"chancery/internal/fault"
)

// maxDocument is far above any real document; it keeps a hostile one from costing memory.
const maxDocument = 256 << 10

// Decode reads a document strictly and validates it: a field that does not exist, one given twice, one in another case
// and anything after the document are refused, each with its path. encoding/json alone would accept all but the first.
func Decode(document []byte) (*Settings, error) {
	s, err := decode(document)
	if err != nil {
		return nil, err
	}
	return s, s.Validate()
}

func decode(document []byte) (*Settings, error) {
	if len(document) > maxDocument {
		return nil, fault.New(fault.TooLarge, "the settings are %d bytes; at most %d are read", len(document), maxDocument)
	}
	known, err := tree(Defaults())
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(document))
	if err := checkFields(dec, known, ""); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "something follows the settings; one JSON object is wanted")
	}
	s := Defaults()
	s.Expiry.Thresholds = nil // decoding into a slice keeps its old elements' backing array
	if err := json.Unmarshal(document, &s); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, fault.New(fault.Invalid, "%s is a %s; %s is wanted", wrong.Field, wrong.Value, wanted(wrong.Type)).At(wrong.Field)
		}
		return nil, fault.New(fault.Invalid, "settings: %w", err)
	}
	if s.Expiry.Thresholds == nil {
		s.Expiry.Thresholds = Defaults().Expiry.Thresholds
	}
	return &s, nil
}

// wanted says in a document's words what a field takes.
func wanted(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[Duration]():
		return "a string such as 7d or 12h"
	case t.Kind() == reflect.String:
		return "a string"
	case t.Kind() == reflect.Int64:
		return "a whole number"
	case t.Kind() == reflect.Float64:
		return "a number"
	case t.Kind() == reflect.Slice:
		return "a list of whole numbers"
	}
	return "an object"
}

// checkFields walks one JSON value beside the document of the defaults, in which every field is present.
func checkFields(dec *json.Decoder, known any, path string) error {
	token, err := dec.Token()
	if err != nil {
		return fault.New(fault.Invalid, "the settings are not JSON: %w", err)
	}
	fields, isObject := known.(map[string]any)
	if token != json.Delim('{') {
		if isObject {
			return fault.New(fault.Invalid, "%s is not an object", cmpOr(path, "the document")).At(path)
		}
		return skipRest(dec, token)
	}
	if !isObject {
		return fault.New(fault.Invalid, "%s is an object; a value is wanted", path).At(path)
	}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return fault.New(fault.Invalid, "the settings are not JSON: %w", err)
		}
		name, _ := token.(string)
		at := join(path, name)
		next, ok := fields[name]
		switch {
		case !ok:
			return fault.New(fault.Invalid, "%q is not a setting; here there are: %s", at,
				strings.Join(slices.Sorted(maps.Keys(fields)), ", ")).At(at)
		case seen[name]:
			return fault.New(fault.Invalid, "%s is given twice", at).At(at)
		}
		seen[name] = true
		if err := checkFields(dec, next, at); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return fault.New(fault.Invalid, "the settings are not JSON: %w", err)
	}
	return nil
}

// skipRest reads to the end of the array that token opens, if it opens one.
func skipRest(dec *json.Decoder, token json.Token) error {
	depth := 0
	for {
		switch token {
		case json.Delim('['), json.Delim('{'):
			depth++
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
		if depth <= 0 {
			return nil
		}
		var err error
		if token, err = dec.Token(); err != nil {
			return fault.New(fault.Invalid, "the settings are not JSON: %w", err)
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// tree returns the settings as the values that JSON has.
func tree(s Settings) (map[string]any, error) {
	document, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.UseNumber()
	var t map[string]any
	if err := dec.Decode(&t); err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	return t, nil
}

// Field is one setting as a path and the text of its value.
type Field struct {
	Path  string `json:"path"`
	Value string `json:"value"`
}

// Fields lists every setting by path, in order.
func (s Settings) Fields() ([]Field, error) {
	t, err := tree(s)
	if err != nil {
		return nil, err
	}
	var fields []Field
	flatten(t, "", &fields)
	slices.SortFunc(fields, func(a, b Field) int { return strings.Compare(a.Path, b.Path) })
	return fields, nil
}

func flatten(value any, path string, into *[]Field) {
	switch v := value.(type) {
	case map[string]any:
		for name, inner := range v {
			flatten(inner, join(path, name), into)
		}
	case []any:
		parts := make([]string, len(v))
		for i, element := range v {
			parts[i] = fmt.Sprint(element)
		}
		*into = append(*into, Field{path, strings.Join(parts, ",")})
	default:
		*into = append(*into, Field{path, fmt.Sprint(v)})
	}
}

// With returns a copy of s in which the field at path has the value that text says; a list is separated by commas. The
// copy is validated.
func (s Settings) With(path, text string) (*Settings, error) { return s.WithAll([]Field{{path, text}}) }

// WithAll is With for several fields, which are validated together: some values are right only beside each other.
func (s Settings) WithAll(fields []Field) (*Settings, error) {
	t, err := tree(s)
	if err != nil {
		return nil, err
	}
	for _, f := range fields {
		if err := set(t, f); err != nil {
			return nil, err
		}
	}
	document, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	next, err := decode(document)
	if err != nil {
		return nil, s.culprit(fields, err)
	}
	next.Version = s.Version
	return next, next.Validate()
}

// culprit names the field whose value made decoding fail, where the decoder does not: it knows of no field when a value's own
// text form refuses.
func (s Settings) culprit(fields []Field, found error) error {
	if f, ok := errors.AsType[*fault.Error](found); !ok || f.Pointer != "" {
		return found
	}
	for _, f := range fields {
		t, err := tree(s)
		if err != nil {
			return err
		}
		if err := set(t, f); err != nil {
			return err
		}
		document, err := json.Marshal(t)
		if err != nil {
			return fmt.Errorf("encode settings: %w", err)
		}
		if _, err := decode(document); err != nil {
			return fault.New(fault.Invalid, "%s: %w", f.Path, err).At(f.Path)
		}
	}
	return found
}

// set puts a field's value into the tree.
func set(node map[string]any, f Field) error {
	names := strings.Split(f.Path, ".")
	for i, name := range names {
		old, ok := node[name]
		inner, isObject := old.(map[string]any)
		last := i == len(names)-1
		if !ok || isObject == last {
			return fault.New(fault.Invalid, "%q is not a setting", f.Path).At(f.Path).WithHint("chancery settings show lists them")
		}
		if last {
			node[name] = valueLike(old, f.Value)
			return nil
		}
		node = inner
	}
	return nil
}

// valueLike returns text as a JSON value of the same type as old. Text that is no such value is left a string, which
// decoding then refuses with the field's name.
func valueLike(old any, text string) any {
	number := func(text string) any {
		if text = strings.TrimSpace(text); json.Valid([]byte(text)) && strings.Trim(text, "0123456789.-") == "" {
			return json.Number(text)
		}
		return text
	}
	switch old.(type) {
	case json.Number:
		return number(text)
	case []any:
		list := []any{}
		for part := range strings.SplitSeq(text, ",") {
			list = append(list, number(part))
		}
		return list
	}
	return text
}
