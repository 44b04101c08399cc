package cert

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"

	"pgregory.net/rapid"
)

func TestParseProfileRefuses(t *testing.T) {
	for what, c := range map[string]struct{ text, says string }{
		"empty":            {"", "empty"},
		"unknown field":    {"name: x\nnmaes: {}\n", `unknown field "nmaes"`},
		"repeated field":   {"name: x\nname: y\n", "name"},
		"wrong type":       {"name: [x]\n", "[1:"},
		"two documents":    {customProfile + "---\nname: y\n", "second document"},
		"bad YAML":         {"name: \"x\n", "profile:"},
		"too long":         {strings.Repeat("# \n", 40000), "65536 at most"},
		"name":             {strings.Replace(customProfile, "name: custom", "name: Custom!", 1), "small letters"},
		"duration":         {strings.Replace(customProfile, "1d12h", "soon", 1), `duration "soon"`},
		"max":              {strings.Replace(customProfile, "2w", "1d", 1), "validity.max: 1d is less"},
		"backdate":         {strings.Replace(customProfile, "0s", "3d", 1), "validity.backdate"},
		"algorithm":        {strings.Replace(customProfile, "[rsa, ", "[dsa, ", 1), `key.algorithms[0]: "dsa"`},
		"rsa_min":          {strings.Replace(customProfile, "3072", "1024", 1), "key.rsa_min: 1024"},
		"usage":            {strings.Replace(customProfile, "keyAgreement", "signing", 1), `key usage "signing"`},
		"keyCertSign":      {strings.Replace(customProfile, "keyAgreement", "keyCertSign", 1), "belongs to a CA"},
		"extended":         {strings.Replace(customProfile, "[serverAuth", "[server", 1), `extended key usage "server"`},
		"lint":             {strings.Replace(customProfile, "[key-usage-of-key]", "[foo]", 1), `no lint "foo"`},
		"zlint":            {strings.Replace(customProfile, "off: [key-usage-of-key]", "zlint_off: [w_x]", 1), "begins with e_"},
		"fixed lint":       {strings.Replace(customProfile, "[key-usage-of-key]", "[san-content]", 1), "cannot be turned off"},
		"keep_for_ec":      {strings.Replace(customProfile, "off: [key-usage-of-key]", "off: []", 1), "usage.keep_for_ec"},
		"dns":              {strings.Replace(customProfile, `"*.ci.example.com"`, `"a b"`, 1), "names.rules[0].dns[0]"},
		"dns stars":        {strings.Replace(customProfile, `"*.ci.example.com"`, `"a.**.b"`, 1), "at the beginning only"},
		"variable":         {strings.Replace(customProfile, "*.${host.names}", "*.${host.names", 1), "${ without }"},
		"empty variable":   {strings.Replace(customProfile, "*.${host.names}", "*.${}", 1), "without a name"},
		"ip":               {strings.Replace(customProfile, "10.1.0.0/16", "10.1.0.5/16", 1), "write 10.1.0.0/16"},
		"email":            {strings.Replace(customProfile, "build-*@example.com", "example.com", 1), "LOCAL@DOMAIN"},
		"uri":              {strings.Replace(customProfile, "https://*.example", "*://*.example", 1), "begin with its scheme"},
		"subject":          {strings.Replace(customProfile, "OU: [", "XY: [", 1), "names.rules[0].subject.XY"},
		"common_name":      {strings.Replace(customProfile, "common_name: subject", "common_name: any", 1), "names.common_name"},
		"fixed":            {strings.Replace(customProfile, "O=Example,C=DE", "O", 1), "names.fixed"},
		"policy":           {strings.Replace(customProfile, "{id: 1.2.3.4", "{id: x", 1), "extensions.policies[0].id"},
		"copy":             {strings.Replace(customProfile, "copy: [1.2.3.5]", "copy: [2.5.29.17]", 1), "subjectAltName is decided"},
		"subject_key_id":   {strings.Replace(customProfile, "subject_key_id: spki", "subject_key_id: md5", 1), "extensions.subject_key_id"},
		"no rules":         {"name: x\nnames: {}\nvalidity: {default: 1d}\n", "names.rules"},
		"CA without sign":  {"name: x\nnames: {rules: [{}]}\nvalidity: {default: 1d}\nca: {path_length: 0}\n", "needs keyCertSign"},
		"CA path length":   {"name: x\nnames: {rules: [{}]}\nvalidity: {default: 1d}\nusage: {key_usage: [keyCertSign]}\nca: {path_length: -2}\n", "ca.path_length"},
		"nocheck":          {"name: x\nnames: {rules: [{}]}\nvalidity: {default: 1d}\nextensions: {ocsp_nocheck: true}\n", "OCSPSigning"},
		"inhibitAnyPolicy": {"name: x\nnames: {rules: [{}]}\nvalidity: {default: 1d}\nextensions: {inhibit_any_policy: 1}\n", "CAs only"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := ParseProfile([]byte(c.text))
			kind := fault.Invalid
			if what == "too long" {
				kind = fault.TooLarge
			}
			refused(t, err, kind, c.says)
		})
	}
	_, err := ParseProfile([]byte("name: X\nnames: {max: -1}\nvalidity: {default: 0s}\n"))
	refused(t, err, fault.Invalid, "name:", "names.max", "names.rules", "validity.default") // every problem at once
}

// TestProfileBomb: aliases of aliases would make a short text endless; they are refused before anything is expanded.
func TestProfileBomb(t *testing.T) {
	text := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := range 12 {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d,", i), 10))
	}
	_, err := ParseProfile([]byte(text))
	refused(t, err, fault.Invalid, "line 1: anchors and aliases")
	_, err = ParseProfile([]byte(strings.Repeat("[", 30000)))
	refused(t, err, fault.Invalid, "brackets")
	_, err = ParseProfile([]byte(strings.Repeat("a: {", 15000)))
	refused(t, err, fault.Invalid, "brackets")
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]string{"90d": "90d", "1y": "365d", "2w": "14d", "1d12h": "1d12h", "36h": "1d12h", "90m": "1h30m", "5m30s": "5m30s",
		"0s": "0s", "0d": "0s", "60m": "1h", "200ms": "200ms", "1y2w3d": "382d"} {
		d, err := ParseDuration(text)
		if err != nil || d.String() != want {
			t.Errorf("%q is %v, %v, want %s", text, d, err, want)
		}
	}
	for _, text := range []string{"", "5", "d", "-1d", "1.5d", "1d ", "300y", "290y1d", "99999999999999999999s", "9223372036854775807y", "1d1d", "5m1h", "1h30",
		"+7d", "1d-2h", "1month", "1000000d", "9999999h", "5ns"} {
		d, err := ParseDuration(text)
		if err == nil {
			t.Errorf("%q is read as %s", text, d)
			continue
		}
		refused(t, err, fault.Invalid, "write 90d")
	}
	rapid.Check(t, func(t *rapid.T) {
		d := Duration(rapid.Int64Range(0, 9e12).Draw(t, "milliseconds")) * Duration(time.Millisecond)
		if again, err := ParseDuration(d.String()); err != nil || again != d {
			t.Fatalf("%s is read as %s, %v", d, again, err)
		}
	})
}

// TestProfileIdentity: a profile that is written is read as the same.
func TestProfileIdentity(t *testing.T) {
	texts := [][]byte{[]byte(customProfile)}
	for _, name := range BuiltinProfiles() {
		text, err := BuiltinYAML(name)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	for _, text := range texts {
		p, err := ParseProfile(text)
		if err != nil {
			t.Fatal(err)
		}
		first, err := p.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseProfile(first)
		if err != nil {
			t.Fatalf("%v\n%s", err, first)
		}
		second, err := again.YAML()
		if err != nil || string(first) != string(second) {
			t.Errorf("%s\nbecame\n%s, %v", first, second, err)
		}
	}
}

// TestGlobAgrees compares the matcher with a plain recursive one.
func TestGlobAgrees(t *testing.T) {
	var plain func(pattern, text string) bool
	plain = func(pattern, text string) bool {
		switch {
		case pattern == "":
			return text == ""
		case pattern[0] != '*':
			return text != "" && text[0] == pattern[0] && plain(pattern[1:], text[1:])
		}
		return plain(pattern[1:], text) || (text != "" && text[0] != '/' && plain(pattern, text[1:]))
	}
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab*/]{0,8}`).Draw(t, "pattern")
		text := rapid.StringMatching(`[ab/]{0,10}`).Draw(t, "text")
		if got, want := glob(pattern, text, "/"), plain(pattern, text); got != want {
			t.Fatalf("%q on %q: %t, want %t", pattern, text, got, want)
		}
	})
}

// FuzzParseProfile: no input panics, every error is a refusal, and what is read can be written and read again.
func FuzzParseProfile(f *testing.F) {
	f.Add(customProfile)
	f.Add("name: x\nnames: &a {rules: [{}]}\nvalidity: {default: 1d}\nx: *a\n")
	for _, name := range BuiltinProfiles() {
		text, err := BuiltinYAML(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseProfile([]byte(text))
		if err != nil {
			if kind := fault.KindOf(err); kind != fault.Invalid && kind != fault.TooLarge {
				t.Fatalf("%q: %v is no refusal", text, err)
			}
			return
		}
		again, err := p.YAML()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseProfile(again); err != nil {
			t.Fatalf("%q was written as %q: %v", text, again, err)
		}
		p.Entitled(host1(), DNSName("host1.example.com"))
	})
}
