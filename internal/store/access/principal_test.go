package access_test

import (
	"context"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/store/access"
)

func with(roles ...access.Role) access.Principal {
	return access.Principal{ID: "1", Name: "x", Kind: access.KindOperator, Roles: roles}
}

func TestRequire(t *testing.T) {
	for name, c := range map[string]struct {
		who  access.Principal
		kind fault.Kind // empty if allowed
	}{
		"has it":    {with(access.Officer), ""},
		"has more":  {with(access.Auditor, access.Officer), ""},
		"another":   {with(access.Operator), fault.Denied},
		"none":      {with(), fault.Denied},
		"anonymous": {access.Principal{Roles: []access.Role{access.Admin, access.Officer}}, fault.Unauthenticated},
		"disabled":  {access.Principal{ID: "1", Name: "x", Kind: access.KindOperator, Roles: []access.Role{access.Officer}, Disabled: true}, fault.Denied},
		"system":    {access.System("n1"), ""},
	} {
		for _, err := range []error{c.who.Require(access.Officer, access.Admin), c.who.May(access.DecideRequest)} {
			if c.kind == "" && err != nil || c.kind != "" && !fault.Is(err, c.kind) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	err := with(access.Operator).May(access.ChangeSettings)
	if want := "operator:x has the roles operator; settings.change needs one of admin"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// The table says something about every action, names no role that does not exist, and keeps the promises of the roles.
func TestPermissions(t *testing.T) {
	source, err := os.ReadFile("permissions.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\t\w+ +Action = "([a-z.-]+)"$`).FindAllStringSubmatch(string(source), -1)
	table := access.Permissions()
	if len(declared) < 20 || len(table) != len(declared) {
		t.Fatalf("%d actions, %d lines in the table", len(declared), len(table))
	}
	for _, d := range declared {
		if !slices.ContainsFunc(table, func(p access.Permission) bool { return string(p.Action) == d[1] }) {
			t.Errorf("the table has no line for %s", d[1])
		}
	}
	for _, p := range table {
		if p.What == "" || len(p.Roles) == 0 {
			t.Errorf("the line of %s is not whole", p.Action)
		}
		switch mayAdmin := slices.Contains(p.Roles, access.Admin); {
		case p.Action == access.ActAsHost && len(p.Roles) != 1:
			t.Errorf("people act as hosts: %v", p.Roles)
		case p.Action != access.ActAsHost && !mayAdmin:
			t.Errorf("administrators may not %s", p.Action)
		}
		for _, r := range p.Roles {
			if !slices.Contains(access.Roles, r) {
				t.Errorf("%s names the role %s", p.Action, r)
			}
		}
		for _, r := range access.Roles {
			if err := with(r).May(p.Action); (err == nil) != slices.Contains(p.Roles, r) {
				t.Errorf("%s, role %s: %v", p.Action, r, err)
			}
		}
		reads := strings.HasSuffix(string(p.Action), ".read")
		if reads && !slices.Contains(p.Roles, access.Auditor) {
			t.Errorf("auditors, who read all, may not %s", p.Action)
		}
		harmless := reads || p.Action == access.CheckStore || p.Action == access.ManageOwnTokens || p.Action == access.SignCheckpoint
		if !harmless && slices.Contains(p.Roles, access.Auditor) {
			t.Errorf("auditors, who change nothing, may %s", p.Action)
		}
	}
	if err := with(access.Roles...).May("nothing.such"); !fault.Is(err, fault.Denied) {
		t.Errorf("an action that is not in the table: %v", err)
	}
}

func TestContext(t *testing.T) {
	if p := access.From(context.Background()); p.ID != "" || p.Require(access.Roles...) == nil || p.Actor() != "anonymous" {
		t.Fatalf("no caller is %+v", p)
	}
	if p := access.From(access.With(context.Background(), with(access.Host))); !p.Has(access.Host) {
		t.Fatalf("got %+v", p)
	}
}

// A document can name any principal, but not make one that is the system.
func TestSystemCannotBeForged(t *testing.T) {
	var p access.Principal
	if err := json.Unmarshal([]byte(`{"id":"system:n1","name":"n1","kind":"node","system":true,"System":true}`), &p); err != nil {
		t.Fatal(err)
	}
	if p.Has(access.Admin) || p.Actor() != "node:n1" {
		t.Fatalf("got %+v, %s", p, p.Actor())
	}
}
