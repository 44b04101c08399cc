package recipe

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"chancery/internal/fault"
)

// sound is a recipe without a fault; the tests break it.
const sound = `name: sample
title: a sample
parameters:
  - {name: dir, type: path, default: /etc/sample, trusted: true}
  - {name: kind, type: choice, choices: [one, two], default: one}
  - {name: on, type: bool, default: "false"}
  - {name: port, type: port, default: "443"}
  - {name: who, type: user, default: "${fact.owner|root}"}
facts:
  - {name: version, command: [sampled, --version], pattern: '([0-9.]+)'}
  - {name: conf, config: "${param.dir}/sample.conf", syntax: nginx}
  - {name: owner, users: [sample, nobody]}
require:
  - {when: param.on, that: fact.version >= 2.0, message: "version ${fact.version|unknown} is too old"}
certificates:
  - id: main
    profile: server
    key:
      - {when: param.kind == two, algorithm: ecdsa-p256}
      - {algorithm: rsa-3072, encoding: traditional, key_usages: [digitalSignature]}
    subject: "O=${authority},CN=${host.name}"
    names: ["dns:${host.names}", "ip:${host.addresses}"]
    usages: [serverAuth]
trust: {crls: true, intermediates: true, max_certificates: 16, max_bytes: 65536}
directories:
  - {path: "${param.dir}", owner: root, group: root, mode: "0755", label: "system_u:object_r:cert_t:s0"}
files:
  - {path: "${param.dir}/key.pem", content: [key], owner: "${param.who}", mode: "0600"}
  - {path: "${param.dir}/cert.pem", content: [path]}
  - {path: "${param.dir}/ca.pem", content: [anchors]}
  - {path: "${param.dir}/crl.pem", content: [crls]}
  - {path: "${param.dir}/store.p12", content: [key, path], format: pkcs12, password_file: "${param.dir}/password", alias: sample}
user: "${param.who}:root"
checks:
  - {name: check, command: [sampled, --check, "${param.dir}"], timeout: 5s}
reload:
  - {name: reload, when: fact.version >= 1.2, signal: {pid_file: /run/sampled.pid, process: sampled, signal: HUP}}
  - {name: restart, command: [systemctl, restart, sampled], interrupts: true}
after:
  - {name: drop, action: drop-revoked-clients, with: {program: virt-admin, uri: "x:///", server: x}}
probe: {address: "localhost:${param.port}", starttls: smtp, names: ["${host.name}"], client_certificate: main, timeout: 5s}
conflicts: [other]
notes:
  - {when: param.on, text: it is on}
`

// refused fails unless err is a refusal that says the words.
func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted; want a refusal that says %q", words)
		return
	}
	if kind := fault.KindOf(err); kind != fault.Invalid && kind != fault.TooLarge && kind != fault.Conflict {
		t.Errorf("%v is of kind %s", err, kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("refusal %q does not say %q", err, word)
		}
	}
}

func TestParseSound(t *testing.T) {
	if _, err := Parse([]byte(sound), "sound"); err != nil {
		t.Fatal(err)
	}
}

// TestParseRefuses breaks the sound recipe in one place at a time: the refusal names the line of that place and what is wrong.
func TestParseRefuses(t *testing.T) {
	cases := []struct{ what, old, new, says string }{
		{"name", "name: sample\n", "name: Sample!\n", "small letters"},
		{"title", "title: a sample", "title: ''", "one line"},
		{"parameter name", "name: kind,", "name: Kind,", "a letter first"},
		{"parameter twice", "name: on, type: bool", "name: dir, type: bool", `"dir" is there twice`},
		{"type", "type: bool", "type: boolean", "is no type; there are path"},
		{"choices", "choices: [one, two], ", "", "choices belong to the type choice"},
		{"choice twice", "choices: [one, two]", "choices: [one, one]", "twice"},
		{"choices of another type", "type: bool,", "type: bool, choices: [a],", "choices belong to the type choice"},
		{"default of type", `default: "443"`, `default: "70000"`, "a number from 1 to 65535"},
		{"default later", `default: "443"`, `default: "${param.who}"`, "stands later"},
		{"default itself", `default: "443"`, `default: "${param.port}"`, "stands later, or is the parameter itself"},
		{"default and required", `default: "443"`, `default: "443", required: true`, "has no default"},
		{"default unknown", `"${fact.owner|root}"`, `"${fact.ownr|root}"`, "there is no variable fact.ownr"},
		{"fact name", "name: version,", "name: Version,", "a letter first"},
		{"fact twice", "name: owner, users", "name: version, users", "twice"},
		{"two kinds", "users: [sample, nobody]", "users: [sample], groups: [sample]", "2 are there"},
		{"no kind", "users: [sample, nobody]", "about: x", "0 are there"},
		{"pattern", "([0-9.]+)", "[0-9.]+", "has no group"},
		{"broken pattern", "([0-9.]+)", "([0-9.]+", "missing closing )"},
		{"no pattern", ", pattern: '([0-9.]+)'", "", "needs a pattern"},
		{"syntax", "syntax: nginx", "syntax: ini", "config needs one of libvirt"},
		{"no syntax", ", syntax: nginx", "", "config needs one of libvirt"},
		{"fact of a fact", `config: "${param.dir}/sample.conf"`, `config: "/etc/${param.who}.conf"`, "param.who is known only when facts are"},
		{"fact of the host", "users: [sample, nobody]", `users: ["${host.name}"]`, "host.name is known only when facts are"},
		{"fact's user", "users: [sample, nobody]", `users: ["sam ple"]`, "is no user or group"},
		{"requirement empty", "that: fact.version >= 2.0", "that: ''", "that is missing"},
		{"message empty", `message: "version ${fact.version|unknown} is too old"`, "message: ' '", "a sentence is wanted"},
		{"condition", "when: param.on, that", "when: param.on and, that", "is wanted at its end"},
		{"condition's variable", "when: param.on, that", "when: param.off, that", "there is no variable param.off"},
		{"condition alone", "when: param.on, that", "when: param.kind, that", "stands alone"},
		{"condition of literals", "when: param.on, that", "when: one == two, that", "one side must be a variable"},
		{"condition of a list", "when: param.on, that", "when: host.names == a, that", "is a list"},
		{"never equal", "param.kind == two", "param.kind == tow", `param.kind is never "tow"`},
		{"order of a choice", "param.kind == two", "param.kind >= 2.0", "has no order"},
		{"order of words", "fact.version >= 1.2", "fact.version >= new", "only versions"},
		{"file as fact", "fact.version >= 1.2", "fact.conf == x", "name a setting of it"},
		{"setting of a version", "fact.version >= 1.2", "fact.version.major == 1", "has no settings"},
		{"certificate id", "id: main", "id: Main", "a letter first"},
		{"profile", "profile: server", "profile: Server One", "small letters, digits and hyphens"},
		{"algorithm", "algorithm: ecdsa-p256", "algorithm: dsa", "dsa"},
		{"encoding", "encoding: traditional", "encoding: pkcs1", "not pkcs8 or traditional"},
		{"key usage", "key_usages: [digitalSignature]", "key_usages: [signing]", `key usage "signing"`},
		{"usage", "usages: [serverAuth]", "usages: [server]", `"server"`},
		{"key rule unreachable", "{when: param.kind == two, algorithm: ecdsa-p256}", "{algorithm: ecdsa-p256}", "never reached"},
		{"subject", `"O=${authority},CN=${host.name}"`, `"${authority}"`, "="},
		{"name without kind", `"dns:${host.names}"`, `"${host.names}"`, "dns:"},
		{"list with a fallback", `"dns:${host.names}"`, `"dns:${host.names|x}"`, "sample.example,sample"},
		{"list as one name", `names: ["${host.name}"]`, `names: ["www.${host.names|x}"]`, "is no DNS name"},
		{"directory mode", `mode: "0755", label`, `mode: "0775", label`, "can put another file in place"},
		{"directory that nobody enters", `mode: "0755", label`, `mode: "0644", label`, "can be read and not entered"},
		{"sticky directory", `mode: "0755", label`, `mode: "1777", label`, "sticky"},
		{"label", `label: "system_u:object_r:cert_t:s0"`, `label: "cert_t"`, "SELinux context"},
		{"owner", "owner: root, group: root", "owner: 'root:root', group: root", "is no user or group"},
		{"relative path", `path: "${param.dir}/cert.pem"`, `path: "etc/cert.pem"`, "is not absolute"},
		{"dots in a path", `path: "${param.dir}/cert.pem"`, `path: "${param.dir}/../cert.pem"`, "has a component .."},
		{"unclean path", `path: "${param.dir}/cert.pem"`, `path: "${param.dir}//cert.pem"`, "is not clean"},
		{"shell in a path", `path: "${param.dir}/cert.pem"`, `path: "/etc/$(id)/cert.pem"`, "other characters"},
		{"kernel's path", `path: "${param.dir}/cert.pem"`, `path: "/proc/1/cert.pem"`, "which is the kernel's"},
		{"path of a user", `path: "${param.dir}/cert.pem"`, `path: "${param.who}/cert.pem"`, "is not absolute"},
		{"path twice", `path: "${param.dir}/cert.pem"`, `path: "${param.dir}/key.pem"`, "is files[0] already"},
		{"path of a directory", `path: "${param.dir}/cert.pem"`, `path: "${param.dir}"`, "is directories[0]"},
		{"open variable", `path: "${param.dir}/cert.pem"`, `path: "${param.dir/cert.pem"`, "${ without }"},
		{"strange variable", `path: "${param.dir}/cert.pem"`, `path: "${HOME}/cert.pem"`, `there is no variable "HOME"`},
		{"content", "content: [anchors]", "content: [roots]", `"roots" is not one of key, leaf`},
		{"no content", "content: [anchors]", "content: []", "holds at least one of"},
		{"content twice", "content: [anchors]", "content: [anchors, anchors]", "twice"},
		{"leaf twice", "content: [path]}", "content: [path, leaf]}", "would put certificates there twice"},
		{"key and crls", "content: [crls]}", "content: [key, crls]}", "written anew"},
		{"DER of two", "content: [path]}", "content: [path], format: der}", "der holds one thing"},
		{"hash directory of a key", "content: [path]}", "content: [path], format: hashdir}", "hashdir holds anchors, issuers, pinned and crls"},
		{"store of a key alone", "content: [key, path], format: pkcs12", "content: [key], format: pkcs12", "a key entry is key with leaf or path"},
		{"store of CRLs", "content: [key, path], format: pkcs12", "content: [anchors, crls], format: pkcs12", "neither CRLs"},
		{"format", "format: pkcs12", "format: bks", `"bks" is not one of pem`},
		{"store without password", `password_file: "${param.dir}/password", `, "", "need the path of a file with their password"},
		{"password beside a store", "content: [path]}", "content: [path], password_file: /etc/x}", "no other format has one"},
		{"password in a file of ours", `"${param.dir}/password"`, `"${param.dir}/cert.pem"`, "is files[1]"},
		{"alias", "alias: sample", "alias: 'sam ple'", "alias"},
		{"alias beside a store", "content: [path]}", "content: [path], alias: x}", "only entries of pkcs12 and jks"},
		{"merged key store", "content: [key, path], format: pkcs12", "content: [key, path], merge: true, format: pkcs12", "give that a file of its own"},
		{"merged hash directory", "content: [anchors]", "content: [anchors], merge: true, format: hashdir", "merge is for pem, pkcs12 and jks"},
		{"directory of certificates with a path", "content: [path]}", "content: [path], format: certdir}", "certdir holds a file for each"},
		{"nss with CRLs", "content: [crls]}", "content: [crls], format: nss}", "refuses everybody"},
		{"nss with a leaf alone", "content: [path]}", "content: [path], format: nss}", "key with leaf or path"},
		{"trust flags", "content: [anchors]", "content: [anchors], format: nss, trust_flags: 'CTu'", "three groups"},
		{"trust flags of no database", "content: [anchors]", "content: [anchors], trust_flags: 'CT,,'", "only nss has trust flags"},
		{"a file that the reload makes", "starttls: smtp, ", "holds: /etc/x, starttls: smtp, ", "exactly one of address, command, holds and action"},
		{"key for others", `owner: "${param.who}", mode: "0600"`, `owner: "${param.who}", mode: "0644"`, "a key is not for others to read"},
		{"key written by its group", `owner: "${param.who}", mode: "0600"`, `owner: "${param.who}", mode: "0660"`, "0640"},
		{"executable key", `owner: "${param.who}", mode: "0600"`, `owner: "${param.who}", mode: "0700"`, "can be run"},
		{"setuid", "content: [path]}", `content: [path], mode: "4755"}`, "setuid"},
		{"executable", "content: [path]}", `content: [path], mode: "0755"}`, "can be run"},
		{"written by all", "content: [path]}", `content: [path], mode: "0666"}`, "decides what is trusted"},
		{"no mode", "content: [path]}", `content: [path], mode: "rw-r--r--"}`, "three octal digits"},
		{"unreadable", "content: [path]}", `content: [path], mode: "0044"}`, "the owner cannot read"},
		{"of", "content: [path]}", "content: [path], of: other}", `there is no certificate "other"; there are main`},
		{"crls not fetched", "crls: true, ", "", "set trust.crls"},
		{"limits", "max_bytes: 65536", "max_bytes: -1", "or more"},
		{"reader", `user: "${param.who}:root"`, `user: "a b"`, "is no user or group"},
		{"step name", "name: check", "name: Check It", "a letter first"},
		{"step twice", "name: restart", "name: check", "is checks[0] already"},
		{"two ways", "name: restart, command", "name: restart, action: drop-revoked-clients, command", "2 are there"},
		{"no way", "command: [systemctl, restart, sampled], ", "", "0 are there"},
		{"signal", "signal: HUP", "signal: KILL", `"KILL" is not one of HUP`},
		{"ending signal", "signal: HUP", "signal: TERM", "say interrupts: true"},
		{"process", "process: sampled", "process: /usr/sbin/sampled", "as the kernel has it"},
		{"pid file", "pid_file: /run/sampled.pid", "pid_file: sampled.pid", "is not absolute"},
		{"reload unreachable", "{name: reload, when: fact.version >= 1.2, signal", "{name: reload, signal", "never reached"},
		{"interrupting check", "timeout: 5s}\nreload", "timeout: 5s, interrupts: true}\nreload", "only a step of reload"},
		{"not marked", "/etc/sample, trusted: true}", "/etc/sample}", "dir is used as argument, config: say trusted: true"},
		{"marked for nothing", "default: \"443\"}", "default: \"443\", trusted: true}", "leave trusted out"},
		{"check by signal", "command: [sampled, --check, \"${param.dir}\"]", "signal: {pid_file: /run/s, process: s, signal: HUP}", "checks nothing"},
		{"timeout", "timeout: 5s}\nreload", "timeout: 1h}\nreload", "at most 10m"},
		{"program", "command: [systemctl, ", "command: ['system ctl', ", "an absolute path or the name of a program"},
		{"program by fact", "command: [systemctl, ", "command: ['${fact.version}', ", "a parameter of type path or choice"},
		{"shell", "command: [systemctl, restart, sampled]", `command: [sh, -c, "echo ${host.name}"]`, "would be read as part of it"},
		{"shell, options joined", "command: [systemctl, restart, sampled]", `command: [/bin/bash, -ec, "echo ${host.name}"]`, "would be read as part of it"},
		{"step's user", "command: [systemctl, restart, sampled]", `command: [x], user: "a b"`, "is no user or group"},
		{"user without command", "name: drop,", "name: drop, user: root,", "there is none"},
		{"action", "action: drop-revoked-clients", "action: drop-all", "is not one of check-qemu-credentials, drop-revoked-clients"},
		{"action needs", `uri: "x:///", `, "", "needs program, server, uri; there are program, server"},
		{"action's place", "name: drop, action: drop-revoked-clients, with: {program: virt-admin, uri: \"x:///\", server: x}", "name: drop, action: match-pair",
			"match-pair is no step of after: put it into checks"},
		{"action that needs nothing", "command: [sampled, --check, \"${param.dir}\"], timeout: 5s", "action: match-pair, with: {a: b}", "match-pair needs nothing; there are a"},
		{"action's socket", "name: restart, command: [systemctl, restart, sampled], interrupts: true",
			"name: set, action: set-haproxy-certificate, with: {socket: run/sock, pid_file: /run/pid}", "path \"run/sock\" is not absolute"},
		{"with without action", "interrupts: true}", "interrupts: true, with: {a: b}}", "only an action has with"},
		{"probe of nothing", `address: "localhost:${param.port}", `, "", "exactly one of address, command, holds and action"},
		{"probe address", `"localhost:${param.port}"`, `"localhost"`, "is not HOST:PORT"},
		{"starttls", "starttls: smtp", "starttls: ftp", "is not one of none, postgres"},
		{"probe name", `names: ["${host.name}"]`, `names: ["a b"]`, "is no DNS name"},
		{"client certificate", "client_certificate: main", "client_certificate: other", `there is no certificate "other"`},
		{"conflicts", "conflicts: [other]", "conflicts: [sample]", "is not the name of another recipe"},
		{"note", "text: it is on", "text: ''", "a sentence is wanted"},
	}
	elsewhere := map[string]bool{ // two places do not fit, and the other one is named
		"path twice": true, "crls not fetched": true,
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			if strings.Count(sound, c.old) == 0 {
				t.Fatalf("the sound recipe does not hold %q", c.old)
			}
			_, err := Parse([]byte(strings.Replace(sound, c.old, c.new, 1)), "broken")
			refused(t, err, c.says)
			before, _, _ := strings.Cut(sound, c.old)
			line := strings.Count(before, "\n") + 1
			if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("broken: line %d: ", line)) && !elsewhere[c.what] {
				t.Errorf("the fault is in line %d: %v", line, err)
			}
		})
	}
	if len(cases) < 100 {
		t.Fatalf("%d cases", len(cases))
	}
}

// TestParseText: what is no recipe at all.
func TestParseText(t *testing.T) {
	for what, c := range map[string]struct{ text, says string }{
		"empty":          {"", "is empty"},
		"comment only":   {"# nothing\n", "is empty"},
		"unknown field":  {"name: x\ntitel: y\n", `unknown field "titel"`},
		"repeated field": {"name: x\nname: y\n", "name"},
		"wrong type":     {"name: [x]\n", "[1:"},
		"two documents":  {sound + "---\nname: y\n", "second document"},
		"bad YAML":       {"name: \"x\n", "bad"},
		"too long":       {strings.Repeat("# \n", 40000), "65536 at most"},
		"alias":          {"name: &a x\ntitle: *a\n", "line 1: anchors, aliases and tags"},
		"tag":            {"name: !!binary aGk=\n", "anchors, aliases and tags"},
		"brackets":       {strings.Repeat("[", 1000), "brackets more than 16 deep"},
		"long line":      {"name: x\ntitle: " + strings.Repeat("%", 60000), "bad: line 2: 60007 octets; 1024 at most"},
		"dashes":         {strings.Repeat("- ", 500), "sequence was used where mapping is expected"},
		"indentation":    {"files:\n" + strings.Repeat(" ", 100) + "- path: x\n", "indented by more than 64"},
		"duration":       {strings.Replace(sound, "timeout: 5s", "timeout: soon", 1), "duration"},
		"many":           {strings.Replace(sound, "conflicts: [other]", "conflicts: ["+strings.Repeat("a,", 70)+"b]", 1), "64 at most"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := Parse([]byte(c.text), "bad")
			refused(t, err, c.says)
		})
	}
	// Everything that is wrong is named at once, by line.
	broken := strings.NewReplacer(`mode: "0600"`, `mode: "0666"`, "signal: HUP", "signal: KILL", "title: a sample", "title: ''").Replace(sound)
	_, err := Parse([]byte(broken), "bad")
	refused(t, err, "bad: line 2: title", "files[0].mode", "reload[0].signal.signal")
	if err == nil || len(strings.Split(err.Error(), "\n")) != 3 {
		t.Errorf("want three lines: %v", err)
	}
}

// TestParseCertificates: what a list of certificates must be like.
func TestParseCertificates(t *testing.T) {
	const extra = `  - id: extra
    profile: server
    key: [{algorithm: rsa-3072}]
trust:`
	_, err := Parse([]byte(strings.Replace(sound, "trust:", extra, 1)), "bad")
	refused(t, err, `no file holds the key, or none the certificate, of "extra"`)
	_, err = Parse([]byte(strings.Replace(sound, "trust:", strings.Replace(extra, "extra", "main", 1), 1)), "bad")
	refused(t, err, `"main" is there twice`)
	_, err = Parse([]byte("name: x\ntitle: x\n"), "bad")
	refused(t, err, "certificates: at least one is wanted", "files: at least one is wanted")
	_, err = Parse([]byte("name: x\ntitle: x\ncertificates: [{profile: server}]\nfiles: [{path: /x, content: [leaf]}]\ntrust: {crls: true, intermediates: true}\n"), "bad")
	refused(t, err, "at least one rule is wanted", "no file holds the key", "no file holds them", "no file holds the anchors")
}

// FuzzParse: no text panics, every error is a refusal, and what is read can be explained and resolved or refused.
func FuzzParse(f *testing.F) {
	f.Add(sound)
	for _, r := range Builtins() {
		text, _ := BuiltinYAML(r.Name)
		f.Add(string(text))
	}
	f.Add("name: x\nfiles: [{path: \"${param.a|${fact.b|c}}\"}]\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Parse([]byte(text), "fuzz")
		if err != nil {
			if kind := fault.KindOf(err); kind != fault.Invalid && kind != fault.TooLarge {
				t.Fatalf("%q: %v is no refusal", text, err)
			}
			return
		}
		if _, err := r.Explain(nil); err != nil {
			t.Fatalf("%q was read and cannot be explained: %v", text, err)
		}
		if _, err := r.FactRules(nil); err != nil && fault.KindOf(err) == fault.Internal {
			t.Fatalf("%q: %v is no refusal", text, err)
		}
		plan, err := r.Resolve(sampleHost, nil, Facts{})
		if err != nil {
			if fault.KindOf(err) == fault.Internal {
				t.Fatalf("%q: %v is no refusal", text, err)
			}
			return
		}
		checkPlan(t, plan)
	})
}

// checkPlan holds whatever was resolved to what the engine relies on.
func checkPlan(t *testing.T, plan *Plan) {
	t.Helper()
	for _, path := range plan.Paths() {
		if err := checkPath("planned", path); err != nil {
			t.Fatalf("planned: %v", err)
		}
	}
	for _, f := range plan.Files {
		if f.Owner == "" || f.Mode&0o133 != 0 && f.Format != "hashdir" || f.Secret() && f.Mode&0o137 != 0 || f.Mode&0o022 != 0 {
			t.Fatalf("planned: %+v", f)
		}
	}
	needs := slices.ContainsFunc(plan.Files, func(f PlannedFile) bool { return !f.TrustOnly() })
	if len(plan.Files) == 0 || needs && len(plan.Certificates) == 0 {
		t.Fatal("planned: nothing")
	}
}
