package chancery_test

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are all that an operator or engineer is given to read.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	files := []string{"README.md", "ARCHITECTURE.md", "CHANGELOG.md"}
	err := filepath.WalkDir("docs", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(name, ".md") {
			files = append(files, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(text)
	}
	if len(texts) < 15 {
		t.Fatalf("found %d documents; the check would prove little", len(texts))
	}
	return texts
}

// blocks are the fenced blocks of a page, without those marked as text, joined over "\" at a line's end.
func blocks(page string) (lines []string) {
	inside, skip := false, false
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			inside, skip = !inside, strings.TrimSpace(line) == "```text"
			continue
		}
		if !inside || skip {
			continue
		}
		if n := len(lines); n > 0 && strings.HasSuffix(lines[n-1], "\\") {
			lines[n-1] = strings.TrimSuffix(lines[n-1], "\\") + strings.TrimSpace(line)
			continue
		}
		lines = append(lines, line)
	}
	return lines
}

// words splits a line as a shell does, as far as documents need it: quotes group, # begins a comment, and the command
// ends at a pipe, a redirection, a semicolon or an ampersand.
func words(line string) (args []string) {
	var word strings.Builder
	quote, open := rune(0), false
	flush := func() {
		if open {
			args = append(args, word.String())
		}
		word.Reset()
		open = false
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == ' ' || r == '\t':
			flush()
		case (r == '#' && !open) || strings.ContainsRune("|>;&<", r):
			flush()
			return args
		default:
			word.WriteRune(r)
			open = true
		}
	}
	flush()
	return args
}

var (
	commandEnds  = regexp.MustCompile(`&&|\|\||[;|]|\$\(`)
	commandStart = regexp.MustCompile(`^\s*(?:sudo -u \w+ )?(?:[A-Z_]+=\S+ )*chancery (.*)$`)
)

// commandsIn finds the command lines of chancery in a line of a block.
func commandsIn(line string) (lines []string) {
	for _, one := range commandEnds.Split(line, -1) {
		if m := commandStart.FindStringSubmatch(one); m != nil {
			lines = append(lines, strings.TrimSuffix(m[1], ")"))
		}
	}
	return lines
}

// TestCommandLinesParse holds every command line of the documents against the grammar of the program.
func TestCommandLinesParse(t *testing.T) {
	count := 0
	for name, page := range documents(t) {
		if name == reference {
			continue // made from the grammar
		}
		for _, line := range blocks(page) {
			for _, command := range commandsIn(line) {
				count++
				if err := parseCommand(words(command)); err != nil {
					t.Errorf("%s: chancery %s: %v", name, command, err)
				}
			}
		}
	}
	if count < 60 {
		t.Errorf("only %d command lines were found", count)
	}
}

var inlineCommand = regexp.MustCompile("`chancery ([^`]+)`")

// TestInlineCommandsExist holds the commands and flags that running text names against the grammar. They may leave
// arguments out.
func TestInlineCommandsExist(t *testing.T) {
	known := grammarNames(t)
	count := 0
	for name, page := range documents(t) {
		for _, m := range inlineCommand.FindAllStringSubmatch(page, -1) {
			count++
			if why := known.judge(words(m[1])); why != "" {
				t.Errorf("%s: chancery %s: %s", name, m[1], why)
			}
		}
	}
	if count < 15 {
		t.Errorf("only %d commands were found", count)
	}
}

// TestFlagsExist holds the flags that stand alone in text and tables against those of any command.
func TestFlagsExist(t *testing.T) {
	known := map[string]bool{}
	for _, flags := range grammarNames(t) {
		maps.Copy(known, flags)
	}
	flag := regexp.MustCompile("`--([a-z0-9-]+)")
	count := 0
	for name, page := range documents(t) {
		if name == reference {
			continue
		}
		for _, m := range flag.FindAllStringSubmatch(page, -1) {
			count++
			if !known[m[1]] {
				t.Errorf("%s: no command has a flag --%s", name, m[1])
			}
		}
	}
	if count < 20 {
		t.Errorf("only %d flags were found", count)
	}
}

var hint = regexp.MustCompile(`["` + "`" + `;,] ?chancery ([a-z][^"` + "`" + `;,]*)`)

// TestHintsAreCommands does the same for the hints that refusals and findings give: an operator types them.
func TestHintsAreCommands(t *testing.T) {
	known := grammarNames(t)
	count := 0
	err := filepath.WalkDir("internal", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, "Hint") && !strings.Contains(line, "warn(") && !strings.Contains(line, "Sprintf(") {
				continue
			}
			for _, m := range hint.FindAllStringSubmatch(line, -1) {
				count++
				if why := known.judge(words(m[1])); why != "" {
					t.Errorf("%s: the hint %q: %s", name, "chancery "+m[1], why)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if count < 20 {
		t.Errorf("only %d hints were found", count)
	}
}

// names are the commands of the grammar, each with its flags; everywhere has those of all commands.
type names map[string]map[string]bool

const everywhere = "(every command)"

func grammarNames(t *testing.T) names {
	t.Helper()
	known := names{everywhere: {}}
	for line := range strings.Lines(string(mustRead(t, reference))) {
		if command, ok := strings.CutPrefix(line, "### chancery "); ok {
			known[strings.TrimSpace(command)] = map[string]bool{}
		}
	}
	if len(known) < 50 {
		t.Fatalf("%s names %d commands", reference, len(known))
	}
	current := everywhere
	flags := regexp.MustCompile("`--([a-z0-9-]+)")
	for line := range strings.Lines(string(mustRead(t, reference))) {
		if command, ok := strings.CutPrefix(line, "### chancery "); ok {
			current = strings.TrimSpace(command)
		} else if strings.HasPrefix(line, "## ") && line != "## Commands\n" {
			current = ""
		} else if strings.HasPrefix(line, "| ") && known[current] != nil {
			for _, m := range flags.FindAllStringSubmatch(line, 1) {
				known[current][m[1]] = true
			}
		}
	}
	known["doctor"] = known["doctor look"] // which is what it does when no command is named
	return known
}

// judge says why the words are no command; a group of commands passes, and so does a command that stands bare.
func (n names) judge(args []string) string {
	command := ""
	for _, arg := range args {
		next := strings.TrimSpace(command + " " + arg)
		isGroup := slices.ContainsFunc(slices.Collect(maps.Keys(n)), func(c string) bool { return c == next || strings.HasPrefix(c, next+" ") })
		if !isGroup {
			break
		}
		command = next
	}
	rest := args[len(strings.Fields(command)):]
	flags, leaf := n[command]
	switch {
	case command == "" && (len(rest) == 0 || strings.HasPrefix(rest[0], "--") || strings.ToUpper(rest[0]) == rest[0]):
		return ""
	case !leaf && (command == "" || len(rest) > 0 && !strings.HasPrefix(rest[0], "-")):
		return fmt.Sprintf("there is no such command as %q", strings.Join(args, " "))
	}
	for _, arg := range rest {
		if flag, ok := strings.CutPrefix(arg, "--"); ok && flag != "" {
			flag, _, _ = strings.Cut(flag, "=")
			if leaf && !flags[flag] && !n[everywhere][flag] {
				return fmt.Sprintf("%q has no flag --%s", command, flag)
			}
		}
	}
	// A command without arguments must not be given any: "doctor database" would look for a file of that name.
	return ""
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// testsOfTree are the tests, as package.TestName.
func testsOfTree(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
	for _, root := range []string{".", "client", "internal"} {
		err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && root == "." && name != "." {
				return fs.SkipDir
			}
			if err != nil || !strings.HasSuffix(name, "_test.go") {
				return err
			}
			pkg := path.Base(path.Dir(filepath.ToSlash(name)))
			if pkg == "." {
				pkg = "chancery"
			}
			for _, m := range function.FindAllStringSubmatch(string(mustRead(t, name)), -1) {
				found[pkg+"."+m[1]] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(found) < 300 {
		t.Fatalf("found %d tests in the tree", len(found))
	}
	return found
}

var testName = regexp.MustCompile(`\b[a-z0-9]+\.(?:Test|Fuzz)[A-Za-z0-9_]+`)

// TestProofsExist reads the tables whose last column names the tests that prove a row: each row names one at least, and
// every test that is named exists.
func TestProofsExist(t *testing.T) {
	tests := testsOfTree(t)
	for name, least := range map[string]int{"docs/threat-model.md": 30, "docs/divergences.md": 60, "docs/from-rhcs.md": 24} {
		rows := 0
		inTable, proven := false, false
		for line := range strings.Lines(string(mustRead(t, name))) {
			cells := strings.Split(strings.Trim(strings.TrimSpace(line), "| "), " | ")
			proof := cells[len(cells)-1]
			if began := strings.HasPrefix(line, "|"); began != inTable { // a table begins with its head, or ends
				inTable, proven = began, proof == "test"
				continue
			}
			if !inTable || !proven || strings.HasPrefix(proof, "---") {
				continue
			}
			rows++
			if !testName.MatchString(proof) {
				t.Errorf("%s: no test proves %q", name, strings.TrimSpace(cells[0]))
			}
		}
		if rows < least {
			t.Errorf("%s has %d rows; %d are wanted", name, rows, least)
		}
	}
	for name, page := range documents(t) {
		for _, named := range testName.FindAllString(page, -1) {
			if !tests[named] {
				t.Errorf("%s names the test %s, which does not exist", name, named)
			}
		}
	}
}

var partName = regexp.MustCompile("`([a-z0-9]+)\\.Test[A-Za-z0-9_]+/([^`]+)`")

// TestPartsOfTestsExist holds the parts of tests that documents name: each is a name in its package's tests, or a script there.
func TestPartsOfTestsExist(t *testing.T) {
	texts, scripts := map[string]string{}, map[string]bool{}
	err := filepath.WalkDir("internal", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if pkg, script, ok := strings.Cut(filepath.ToSlash(name), "/testdata/script/"); ok {
			scripts[path.Base(pkg)+" "+strings.TrimSuffix(script, ".txtar")] = true
		} else if strings.HasSuffix(name, "_test.go") {
			pkg := path.Base(path.Dir(filepath.ToSlash(name)))
			texts[pkg] += string(mustRead(t, name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for name, page := range documents(t) {
		for _, m := range partName.FindAllStringSubmatch(page, -1) {
			count++
			if !scripts[m[1]+" "+m[2]] && !strings.Contains(texts[m[1]], `"`+m[2]+`"`) {
				t.Errorf("%s names %s of package %s, which does not exist", name, m[2], m[1])
			}
		}
	}
	if count < 15 {
		t.Errorf("documents name %d parts of tests", count)
	}
}

// TestLinksLead looks for the files that the documents link to.
func TestLinksLead(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
	count := 0
	for name, page := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(page, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			count++
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if count < 10 {
		t.Errorf("only %d links were found", count)
	}
}

// TestArchitectureNamesEverything holds ARCHITECTURE.md against the tables of the schema, the modules of go.mod, and the files
// that it names.
func TestArchitectureNamesEverything(t *testing.T) {
	page := string(mustRead(t, "ARCHITECTURE.md"))
	files, err := filepath.Glob("internal/store/schema/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	tables := 0
	for _, file := range files {
		for _, m := range regexp.MustCompile(`CREATE TABLE (\w+)`).FindAllStringSubmatch(string(mustRead(t, file)), -1) {
			tables++
			if !strings.Contains(page, "`"+m[1]+"`") {
				t.Errorf("ARCHITECTURE.md does not say what table %s is", m[1])
			}
		}
	}
	if tables < 25 {
		t.Errorf("only %d tables were found", tables)
	}
	for _, m := range regexp.MustCompile("`([a-z0-9/]+\\.go)`").FindAllStringSubmatch(page, -1) {
		if !strings.Contains(m[1], "/") {
			continue
		}
		if _, err := os.Stat(m[1]); err != nil {
			_, within := os.Stat("internal/" + m[1])
			if _, store := os.Stat("internal/store/" + m[1]); within != nil && store != nil {
				t.Errorf("ARCHITECTURE.md names %s: %v", m[1], err)
			}
		}
	}
	checkModules(t, page)
}

// checkModules wants a reason for each direct dependency, in the table where it belongs.
func checkModules(t *testing.T, page string) {
	t.Helper()
	_, rest, ok := strings.Cut(page, "## Dependencies")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no section Dependencies")
	}
	program, tests, ok := strings.Cut(rest, "Of tests only")
	if !ok {
		t.Fatal("ARCHITECTURE.md does not tell the dependencies of tests")
	}
	var imported []string
	for _, p := range goList(t) {
		if p.ImportPath != "chancery/internal/pkitest" {
			imported = append(imported, p.Imports...)
		}
	}
	direct := 0
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(string(mustRead(t, "go.mod")), -1) {
		direct++
		of, where := tests, "those of tests"
		if slices.ContainsFunc(imported, func(i string) bool { return i == m[1] || strings.HasPrefix(i, m[1]+"/") }) {
			of, where = program, "those of the program"
		}
		if !strings.Contains(of, "| `"+m[1]+"` |") {
			t.Errorf("ARCHITECTURE.md has no reason for %s among %s", m[1], where)
		}
	}
	if direct < 15 {
		t.Errorf("go.mod has %d direct dependencies", direct)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9.]+/[^`]+)` \\|").FindAllStringSubmatch(rest, -1) {
		if !strings.Contains(string(mustRead(t, "go.mod")), "\t"+m[1]+" v") {
			t.Errorf("ARCHITECTURE.md explains %s, which go.mod does not require", m[1])
		}
	}
}

// TestMetricsAreDescribed wants every metric of the code in the operator guide, and no other.
func TestMetricsAreDescribed(t *testing.T) {
	metric := regexp.MustCompile(`\bchancery_[a-z_]+\b`)
	guide := map[string]bool{}
	for _, m := range metric.FindAllString(string(mustRead(t, "docs/operator-guide.md")), -1) {
		guide[m] = true
	}
	made := map[string]bool{}
	for _, name := range []string{"internal/run/server", "internal/surface/problem", "internal/surface/api"} {
		files, err := filepath.Glob(name + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, m := range regexp.MustCompile(`"(chancery_[a-z_]+)"`).FindAllStringSubmatch(string(mustRead(t, file)), -1) {
				made[m[1]] = true
			}
		}
	}
	if len(made) < 8 {
		t.Errorf("only %d metrics were found", len(made))
	}
	for m := range made {
		if !guide[m] {
			t.Errorf("docs/operator-guide.md does not describe %s", m)
		}
	}
	for m := range guide {
		if !made[m] {
			t.Errorf("docs/operator-guide.md describes %s, which no code makes", m)
		}
	}
}
