package recipe

import (
	"maps"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// parameterTypes are what a parameter may be: in short, what each accepts to the letter, and a sample.
var parameterTypes = []struct{ name, short, accepts, sample string }{
	{"path", "an absolute path", "an absolute path without . or .. components, of letters, digits and ._+@:=,%-", "/sample/path"},
	{"address", "HOST:PORT", "HOST:PORT, such as localhost:443 or [::1]:443", "sample.example:16514"},
	{"host", "a DNS name or an address", "a DNS name or an address", "sample.example"},
	{"port", "a port", "a number from 1 to 65535", "16514"},
	{"user", "a user's name", "a user's name: letters, digits and _.-, at most 32, a letter or _ first", "sample"},
	{"group", "a group's name", "a group's name: letters, digits and _.-, at most 32, a letter or _ first", "sample"},
	{"name", "a name", "a name: letters, digits and ._-, at most 64, a letter or digit first", "sample"},
	{"unit", "a systemd service", "a service of systemd: NAME or NAME.service, NAME@INSTANCE too, of letters, digits and _.:-, and no unit of another kind",
		"sample.service"},
	{"duration", "30s, 5m, 12h, 90d", "30s, 5m, 12h or 90d", "30s"},
	{"bool", "true or false", "true or false", "true"},
	{"choice", "", "one of its choices", ""},
	{"algorithm", "an algorithm", "rsa-3072, rsa-4096, ecdsa-p256, ecdsa-p384, ecdsa-p521 or ed25519", "ecdsa-p256"},
	{"label", "an SELinux context, or nothing", "an SELinux context such as system_u:object_r:cert_t:s0, or nothing for none",
		"system_u:object_r:cert_t:s0"},
}

func typeNames() string {
	var names []string
	for _, t := range parameterTypes {
		names = append(names, t.name)
	}
	return strings.Join(names, ", ")
}

// accepts says what a parameter takes, for people.
func (p *Parameter) accepts() string {
	if p.Type == "choice" {
		return "one of " + strings.Join(p.Choices, ", ")
	}
	for _, t := range parameterTypes {
		if t.name == p.Type {
			return t.accepts
		}
	}
	return ""
}

// short is accepts for a table.
func (p *Parameter) short() string {
	for _, t := range parameterTypes {
		if t.name == p.Type && t.short != "" {
			return t.short
		}
	}
	return p.accepts()
}

// sample is a value that the parameter accepts.
func (p *Parameter) sample() string {
	if p.Type == "choice" && len(p.Choices) > 0 {
		return p.Choices[0]
	}
	for _, t := range parameterTypes {
		if t.name == p.Type {
			return t.sample
		}
	}
	return ""
}

var (
	accountName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
	plainName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	unitName    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.:-]*(@[A-Za-z0-9_.:-]+)?$`)
	pathText    = regexp.MustCompile(`^/[A-Za-z0-9/._+@:=,%-]*$`)
	identifier  = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
)

// selinuxLabel is compiled when it is first asked for, as wholeVersion is.
var selinuxLabel = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9_]{1,64}:[A-Za-z0-9_]{1,64}:[A-Za-z0-9_]{1,64}(:[A-Za-z0-9_.,:-]{1,64})?$`)
})

// check holds a value to the parameter's type.
func (p *Parameter) check(value string) error {
	good := true
	switch p.Type {
	case "path":
		if p.Trusted && strings.Contains(value, "%") {
			return fault.New(fault.Invalid, "parameter %s: path %q holds %%, which a program that is given it in a URI would decode; "+
				"a path without it would pass", p.Name, value)
		}
		return checkPath("parameter "+p.Name, value)
	case "address":
		good = isAddress(value)
	case "host":
		good = isHost(value)
	case "port":
		good = isPort(value)
	case "user", "group":
		good = accountName.MatchString(value)
	case "name":
		good = plainName.MatchString(value)
	case "unit":
		good = isUnit(value)
	case "duration":
		_, err := cert.ParseDuration(value)
		good = err == nil && len(value) <= 32
	case "bool":
		good = value == "true" || value == "false"
	case "choice":
		good = slices.Contains(p.Choices, value)
	case "algorithm":
		_, err := keyfile.ParseAlgorithm(value)
		good = err == nil && plainName.MatchString(value)
	case "label":
		good = value == "" || selinuxLabel().MatchString(value)
	}
	if !good {
		return fault.New(fault.Invalid, "parameter %s: %q is not what it takes: %s", p.Name, value, p.accepts())
	}
	return nil
}

// checkPath accepts an absolute clean path whose characters mean nothing to a shell and cannot be taken for an option.
func checkPath(what, value string) error {
	refuse := func(why string) error {
		return fault.New(fault.Invalid, "%s: path %q %s; what passes is %s", what, value, why, parameterTypes[0].accepts)
	}
	switch {
	case value == "":
		return refuse("is empty")
	case len(value) > 1024:
		return refuse("is longer than 1024 octets")
	case value[0] != '/':
		return refuse("is not absolute")
	case !pathText.MatchString(value):
		return refuse("holds other characters")
	case value == "/":
		return refuse("is the root directory")
	case slices.Contains(strings.Split(value, "/"), ".."):
		return refuse("has a component ..")
	case path.Clean(value) != value:
		return refuse("is not clean; write " + path.Clean(value))
	case strings.Contains(value, "/-"):
		return refuse("has a component that begins with a hyphen")
	}
	for _, system := range []string{"/proc", "/sys", "/dev"} {
		if value == system || strings.HasPrefix(value, system+"/") {
			return refuse("is in " + system + ", which is the kernel's")
		}
	}
	return nil
}

func isHost(value string) bool {
	if a, err := netip.ParseAddr(value); err == nil {
		return a.Zone() == ""
	}
	return cert.CheckDNSName(value, false) == nil && !strings.HasPrefix(value, "-")
}

func isPort(value string) bool {
	n, err := strconv.ParseUint(value, 10, 16)
	return err == nil && n > 0 && value == strconv.FormatUint(n, 10)
}

func isAddress(value string) bool {
	host, port, err := net.SplitHostPort(value)
	return err == nil && isPort(port) && isHost(host) && net.JoinHostPort(host, port) == value
}

// defaultText is the default that is meant, by the values of earlier parameters.
func (p *Parameter) defaultText(value func(string) string) string {
	for _, d := range p.Defaults {
		if c, err := parseCondition(d.When); err == nil && c.judge(value) == holds {
			return d.Value
		}
	}
	return p.Default
}

// defaultTexts are all that the default may be.
func (p *Parameter) defaultTexts() []string {
	all := []string{p.Default}
	for _, d := range p.Defaults {
		all = append(all, d.Value)
	}
	return all
}

func (r *Recipe) parameter(name string) *Parameter {
	for i := range r.Parameters {
		if r.Parameters[i].Name == name {
			return &r.Parameters[i]
		}
	}
	return nil
}

// CheckParameters refuses parameters that the recipe does not have, values that are not of their parameter's type, and
// the absence of those that are required. Every fault is named.
func (r *Recipe) CheckParameters(parameters map[string]string) error {
	var found []string
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		p := r.parameter(name)
		if p == nil {
			found = append(found, noParameter(r, name))
			continue
		}
		if err := p.check(parameters[name]); err != nil {
			found = append(found, err.Error())
		}
	}
	for _, p := range r.Parameters {
		if _, given := parameters[p.Name]; p.Required && !given {
			found = append(found, "parameter "+p.Name+" is required: "+p.accepts())
		}
	}
	if len(found) > 0 {
		return fault.New(fault.Invalid, "recipe %s: %s", r.Name, strings.Join(found, "; ")).
			WithHint("chancery recipe explain %s", r.Name)
	}
	return nil
}

func noParameter(r *Recipe, name string) string {
	var names []string
	for _, p := range r.Parameters {
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return "there is no parameter " + strconv.Quote(name) + "; the recipe has none"
	}
	return "there is no parameter " + strconv.Quote(name) + "; there are " + strings.Join(names, ", ")
}

// limits of a placement's parameters
const (
	maxParameters = 64
	maxValue      = 1024
)

// CheckCharacters is what can be asked of parameters of a recipe that is not known here, because it is a file on the host:
// names that a parameter may have, and values without control characters, without what a shell would read, without ..
// components and without a leading hyphen. The host checks their types.
func CheckCharacters(parameters map[string]string) error {
	if len(parameters) > maxParameters {
		return fault.New(fault.TooLarge, "%d parameters: %d at most", len(parameters), maxParameters)
	}
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		value := parameters[name]
		if !identifier.MatchString(name) {
			return fault.New(fault.Invalid, "parameter %q: a name is 1 to 32 small letters, digits and _, a letter first", name)
		}
		if len(value) > maxValue {
			return fault.New(fault.TooLarge, "parameter %s: %d octets; %d at most", name, len(value), maxValue)
		}
		if err := printableText("parameter "+name, value); err != nil {
			return err
		}
		if i := strings.IndexAny(value, "`$&|;<>(){}[]*?!#\\'\" ~"); i >= 0 {
			return fault.New(fault.Invalid, "parameter %s: %q holds %q, which a shell would read", name, value, value[i:i+1])
		}
		if strings.HasPrefix(value, "-") || slices.Contains(strings.Split(value, "/"), "..") {
			return fault.New(fault.Invalid, "parameter %s: %q begins with a hyphen or has a component ..", name, value)
		}
	}
	return nil
}

// localPrefix marks recipes that are files on the host.
const localPrefix = "local/"

// ParseOrder reads NAME[:key=value,…] as an operator writes it. A value may hold : and =; \, is a comma within a value and
// \\ a backslash. The parameters are not checked against a recipe.
func ParseOrder(text string) (client.PlacementOrder, error) {
	var order client.PlacementOrder
	if len(text) > 64<<10 {
		return order, fault.New(fault.TooLarge, "a recipe with its parameters of %d octets: %d at most", len(text), 64<<10)
	}
	name, rest, given := strings.Cut(text, ":")
	if !plainName.MatchString(strings.TrimPrefix(name, localPrefix)) || len(name) > 64 {
		return order, fault.New(fault.Invalid, "recipe %q: a name is letters, digits and ._-, at most 64, local/ before it for a "+
			"file of the host; write NAME or NAME:key=value,key=value", name)
	}
	order.Recipe = name
	if !given {
		return order, nil
	}
	assignments, err := splitCommas(rest)
	if err != nil {
		return order, err
	}
	order.Parameters = map[string]string{}
	for _, assignment := range assignments {
		key, value, ok := strings.Cut(assignment, "=")
		if !ok || !identifier.MatchString(key) {
			return order, fault.New(fault.Invalid, "recipe %s: %q is not key=value; a comma within a value is written \\,", name, assignment)
		}
		if _, twice := order.Parameters[key]; twice {
			return order, fault.New(fault.Invalid, "recipe %s: parameter %s is given twice", name, key)
		}
		order.Parameters[key] = value
	}
	if len(order.Parameters) > maxParameters {
		return order, fault.New(fault.TooLarge, "recipe %s: %d parameters; %d at most", name, len(order.Parameters), maxParameters)
	}
	return order, nil
}

// splitCommas splits at commas that no backslash stands before.
func splitCommas(text string) ([]string, error) {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text) && (text[i+1] == ',' || text[i+1] == '\\'):
			i++
			b.WriteByte(text[i])
		case text[i] == '\\':
			return nil, fault.New(fault.Invalid, "%q: a backslash stands before a comma or another backslash only", text)
		case text[i] == ',':
			parts = append(parts, b.String())
			b.Reset()
		default:
			b.WriteByte(text[i])
		}
	}
	return append(parts, b.String()), nil
}

// FormatOrder writes what ParseOrder reads, parameters by name.
func FormatOrder(order client.PlacementOrder) string {
	text := order.Recipe
	for i, key := range slices.Sorted(maps.Keys(order.Parameters)) {
		separator := ","
		if i == 0 {
			separator = ":"
		}
		text += separator + key + "=" + strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(order.Parameters[key])
	}
	return text
}
