package token

import (
	"bytes"
	"fmt"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"chancery/internal/fault"
	"chancery/internal/store/token/wire"
)

// URI is a PKCS #11 URI (RFC 7512) that names a private key. What is empty is not named.
type URI struct {
	Token        string
	Manufacturer string
	Serial       string
	Model        string
	Object       string
	ID           []byte
	Slot         *uint64 // slot-id; tokens move between slots, so it finds a token once and is never stored

	PINSource  string // an absolute path
	ModuleName string
	ModulePath string // absolute
}

// maxURI bounds a URI; a real one has some hundred octets.
const maxURI = 2048

// scheme begins every such URI. RFC 3986 compares schemes without regard to case.
const scheme = "pkcs11:"

// IsURI reports whether text is meant to be a PKCS #11 URI, right or wrong.
func IsURI(text string) bool {
	return len(text) >= len(scheme) && strings.EqualFold(text[:len(scheme)], scheme)
}

// Parse reads a PKCS #11 URI that names a private key. It is strict, because a URI that is read otherwise than it was meant
// finds another key: attributes stand once and only where RFC 7512 section 2.3 puts them, values hold only what it allows
// unencoded, and an attribute that is not known is refused and not passed over. pin-value is refused always: a URI stands
// in argument lists and in logs.
func Parse(text string) (*URI, error) {
	u, err := ParseToken(text)
	if err == nil && u.Object == "" && len(u.ID) == 0 {
		return nil, refuseURI("it names no key: object=LABEL or id=%%01… says which one of the token")
	}
	return u, err
}

// ParseToken is Parse for a URI that names a token, and a key of it or none.
func ParseToken(text string) (*URI, error) {
	if !IsURI(text) {
		return nil, refuseURI("it does not begin with pkcs11:")
	}
	if len(text) > maxURI {
		return nil, refuseURI("it has %d characters, and at most %d are read", len(text), maxURI)
	}
	u := &URI{}
	front, query, asked := strings.Cut(text[len(scheme):], "?")
	seen := map[string]bool{}
	if err := u.read(front, ";", pathOctets, seen, u.pathAttribute); err != nil {
		return nil, err
	}
	if asked {
		if err := u.read(query, "&", queryOctets, seen, u.queryAttribute); err != nil {
			return nil, err
		}
	}
	if u.ModuleName != "" && u.ModulePath != "" {
		return nil, refuseURI("module-name and module-path exclude each other")
	}
	return u, nil
}

func refuseURI(format string, args ...any) error {
	return fault.New(fault.Invalid, "this is no PKCS #11 URI of a key here: %s", fmt.Sprintf(format, args...)).
		WithHint("of the form pkcs11:token=LABEL;object=LABEL or pkcs11:token=LABEL;id=%%01 (RFC 7512)").At("key")
}

// What may stand in a value without percent-encoding, beside letters, digits and -._~ (RFC 7512 section 2.3).
const (
	pathOctets  = ":[]@!$'()*+,=&"
	queryOctets = ":[]@!$'()*+,=/?|"
)

// read takes a path or a query apart. The errors quote names and never values: one may be a PIN in the wrong place.
func (u *URI) read(text, separator, allowed string, seen map[string]bool, take func(name, value string) error) error {
	if text == "" {
		return nil
	}
	for attribute := range strings.SplitSeq(text, separator) {
		name, raw, ok := strings.Cut(attribute, "=")
		if !ok || name == "" || strings.Trim(name, attributeName) != "" {
			return refuseURI("after %q stands something that is not NAME=VALUE", separator)
		}
		if seen[name] {
			return refuseURI("%s stands twice", name)
		}
		seen[name] = true
		value, err := decode(raw, allowed)
		if err != nil {
			return refuseURI("%s: %v", name, err)
		}
		if value == "" {
			return refuseURI("%s is empty", name)
		}
		if name != "id" && (!utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl)) {
			return refuseURI("%s is not text in UTF-8 without control characters", name)
		}
		if err := take(name, value); err != nil {
			return err
		}
	}
	return nil
}

const attributeName = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

func decode(raw, allowed string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c == '%':
			if i+2 >= len(raw) {
				return "", fmt.Errorf("an encoding is cut short at its end")
			}
			n, err := strconv.ParseUint(raw[i+1:i+3], 16, 8)
			if err != nil {
				return "", fmt.Errorf("%%%q is no percent-encoding", raw[i+1:i+3])
			}
			b.WriteByte(byte(n))
			i += 2
		case unreserved(c) || strings.IndexByte(allowed, c) >= 0:
			b.WriteByte(c)
		default:
			return "", fmt.Errorf("%q has to be percent-encoded", string(rune(c)))
		}
	}
	return b.String(), nil
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

func (u *URI) pathAttribute(name, value string) error {
	text := func(field *string, most int) error {
		if len(value) > most {
			return refuseURI("%s has %d octets, and PKCS #11 has %d for it", name, len(value), most)
		}
		// PKCS #11 pads with blanks, so none at the end can be meant.
		if *field = strings.TrimRight(value, " "); *field == "" {
			return refuseURI("%s is empty", name)
		}
		return nil
	}
	switch name {
	case "token":
		return text(&u.Token, 32)
	case "manufacturer":
		return text(&u.Manufacturer, 32)
	case "serial":
		return text(&u.Serial, 16)
	case "model":
		return text(&u.Model, 16)
	case "object":
		u.Object = value
	case "id":
		u.ID = []byte(value)
	case "slot-id":
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || value[0] == '+' {
			return refuseURI("slot-id is not a number")
		}
		u.Slot = &n
	case "type":
		if value != "private" {
			return refuseURI("type is %.20q, and a key that signs is of type private", value)
		}
	case "pin-value", "pin-source", "module-name", "module-path":
		return refuseURI("%s belongs behind the question mark", name)
	default:
		return refuseURI("%q is no attribute that is understood here: token, serial, manufacturer, model, object, id, slot-id and type are", name)
	}
	return nil
}

func (u *URI) queryAttribute(name, value string) error {
	switch name {
	case "pin-value":
		return refuseURI("pin-value puts the PIN where everybody reads it; write it into a file of mode 0600, and give that as pin-source=FILE " +
			"or as pin_file in node.yaml, and change the PIN, since it was shown")
	case "pin-source":
		if rest, ok := strings.CutPrefix(value, "file:"); ok {
			value = strings.TrimPrefix(rest, "//")
		}
		if !path.IsAbs(value) {
			return refuseURI("pin-source is not the absolute path of a file; nothing else is asked for a PIN")
		}
		u.PINSource = path.Clean(value)
	case "module-name":
		if strings.Trim(value, attributeName+".") != "" || strings.HasPrefix(value, ".") {
			return refuseURI("module-name is not a plain name")
		}
		u.ModuleName = value
	case "module-path":
		if !path.IsAbs(value) {
			return refuseURI("module-path is not absolute")
		}
		u.ModulePath = path.Clean(value)
	default:
		return refuseURI("%q is no attribute that is understood behind the question mark: pin-source, module-name and module-path are", name)
	}
	return nil
}

// String writes the URI in one form: attributes in a fixed order, and everything encoded that need not stand plain.
func (u *URI) String() string {
	var front, query []string
	add := func(list *[]string, name, value string, slash bool) {
		if value != "" {
			*list = append(*list, name+"="+encode(value, slash))
		}
	}
	add(&front, "token", u.Token, false)
	add(&front, "manufacturer", u.Manufacturer, false)
	add(&front, "serial", u.Serial, false)
	add(&front, "model", u.Model, false)
	if u.Slot != nil {
		add(&front, "slot-id", strconv.FormatUint(*u.Slot, 10), false)
	}
	add(&front, "object", u.Object, false)
	if len(u.ID) > 0 {
		front = append(front, "id="+encodeAll(u.ID))
	}
	front = append(front, "type=private")
	add(&query, "pin-source", u.PINSource, true)
	add(&query, "module-name", u.ModuleName, true)
	add(&query, "module-path", u.ModulePath, true)
	text := scheme + strings.Join(front, ";")
	if len(query) > 0 {
		text += "?" + strings.Join(query, "&")
	}
	return text
}

func encode(value string, slash bool) string {
	var b strings.Builder
	for i := range len(value) {
		if c := value[i]; unreserved(c) || slash && c == '/' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func encodeAll(value []byte) string {
	var b strings.Builder
	for _, c := range value {
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// Local reports what of the URI is one machine's own, and so stands in node.yaml and not with the key.
func (u *URI) Local() []string {
	var names []string
	for _, a := range []struct {
		name  string
		given bool
	}{
		{"slot-id", u.Slot != nil}, {"pin-source", u.PINSource != ""}, {"module-name", u.ModuleName != ""}, {"module-path", u.ModulePath != ""},
	} {
		if a.given {
			names = append(names, a.name)
		}
	}
	return names
}

// stable is the URI under which a key is found again: by the token's label and serial number, which outlive the numbers of
// slots, and by the key's label and id. Manufacturer and model are left out, since an update of a token's own software
// changes them.
func stable(k *wire.Key) (*URI, error) {
	u := &URI{Token: k.Token, Serial: k.Serial, Object: k.Object, ID: k.ID}
	if u.Token == "" && u.Serial == "" {
		return nil, refuseURI("the token has neither a label nor a serial number, so it could not be found again")
	}
	text := u.String()
	if again, err := Parse(text); err != nil || again.String() != text {
		return nil, refuseURI("the labels of token %q and key %q are no text that a URI can hold; give them others", k.Token, k.Object)
	}
	return u, nil
}

// selector is what the helper is asked for.
func (u *URI) selector() wire.Selector {
	return wire.Selector{Token: u.Token, Serial: u.Serial, Manufacturer: u.Manufacturer, Model: u.Model, Slot: u.Slot, Object: u.Object, ID: u.ID}
}

// Finds reports whether a URI names a key that is known by another one; what a URI leaves out may be any.
func (u *URI) Finds(known *URI) bool {
	return (u.Object == "" || u.Object == known.Object) && (len(u.ID) == 0 || bytes.Equal(u.ID, known.ID))
}
