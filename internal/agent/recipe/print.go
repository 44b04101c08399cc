package recipe

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// section is a part of an explanation as it is printed: paragraphs, a list, or a table.
type section struct {
	title  string
	text   string
	list   []string
	header []string
	rows   [][]string
}

func (x *Explanation) sections() []section {
	all := []section{{text: x.About}, x.parameterSection(), x.factSection(), {title: "Requires", list: x.Requires}, x.certificateSection(),
		x.keySection(), {title: "Trust", list: x.Trust}, pathSection("Directories", x.Directories), pathSection("Files", x.Files)}
	if x.Reader != "" {
		all = append(all, section{title: "Read by", text: x.Reader})
	}
	steps := section{title: "Steps"}
	for _, s := range x.Steps {
		steps.list = append(steps.list, s.says())
	}
	all = append(all, steps, section{title: "Probe", text: x.Probe})
	if x.AllowList {
		all = append(all, section{title: "List of names", text: "the consumer has one; the line for it is reported with the placement"})
	}
	return append(all, section{title: "Notes", list: x.Notes}, section{title: "Not together with", list: x.Conflicts},
		section{title: "Traps", list: x.Traps})
}

func (s ExplainedStep) says() string {
	text := s.Stage
	if s.Name != s.Stage {
		text += " (" + s.Name + ")"
	}
	if s.When != "" && s.When != "always" {
		text += ", where " + s.When
	}
	text += ": " + s.Does
	if s.Interrupts {
		text += "; connections are lost, so it is done for new key material only"
	}
	if s.Because != "" {
		text += "; because " + s.Because
	}
	return text
}

func (x *Explanation) parameterSection() section {
	s := section{title: "Parameters", header: []string{"name", "default", "what", "takes"}}
	given := slices.ContainsFunc(x.Parameters, func(p ExplainedParameter) bool { return p.Value != "" })
	if given {
		s.header = slices.Insert(s.header, 1, "given")
	}
	for _, p := range x.Parameters {
		row := []string{p.Name, p.Default, p.About, p.Accepts}
		if given {
			row = slices.Insert(row, 1, p.Value)
		}
		s.rows = append(s.rows, row)
	}
	return s
}

func (x *Explanation) factSection() section {
	s := section{title: "Asked of the host", header: []string{"fact", "what", "how"}}
	for _, f := range x.Facts {
		s.rows = append(s.rows, []string{f.Name, f.About, f.How})
	}
	return s
}

func (x *Explanation) certificateSection() section {
	s := section{title: "Certificates", header: []string{"id", "when", "profile", "subject", "names", "usages"}}
	for _, c := range x.Certificates {
		s.rows = append(s.rows, []string{c.ID, c.When, c.Profile, c.Subject, strings.Join(c.Names, ", "), strings.Join(c.Usages, ", ")})
	}
	return s
}

func (x *Explanation) keySection() section {
	s := section{title: "Keys", header: []string{"certificate", "when", "algorithm", "encoding", "because"}}
	for _, k := range x.Keys {
		if k.When != "" && k.When != "always" {
			s.title = "Keys: the first that fits"
		}
		algorithm := k.Algorithm
		if k.Pinned {
			algorithm += ", kept at renewal"
		}
		s.rows = append(s.rows, []string{k.Certificate, k.When, algorithm, k.Encoding, k.Because})
	}
	return s
}

func pathSection(title string, paths []ExplainedPath) section {
	s := section{title: title, header: []string{"path", "when", "holds", "owner", "mode", "label"}}
	for _, p := range paths {
		holds := strings.Join(p.Content, " + ")
		if p.Format != "" && p.Format != formats[0] {
			holds += " as " + p.Format
		}
		if p.Of != "" {
			holds += " of " + p.Of
		}
		if p.Merge {
			holds += ", beside what else is there"
		}
		if p.PasswordFile != "" {
			holds += ", password in " + p.PasswordFile
		}
		group := p.Group
		if group == "" {
			group = "(the owner's)"
		}
		s.rows = append(s.rows, []string{p.Path, p.When, holds, p.Owner + ":" + group, p.Mode, p.Label})
	}
	return s.withoutEmptyColumns()
}

// withoutEmptyColumns leaves out what no row has.
func (s section) withoutEmptyColumns() section {
	for i := len(s.header) - 1; i >= 0; i-- {
		if !slices.ContainsFunc(s.rows, func(row []string) bool { return row[i] != "" }) {
			s.header = slices.Delete(slices.Clone(s.header), i, i+1)
			for j, row := range s.rows {
				s.rows[j] = slices.Delete(slices.Clone(row), i, i+1)
			}
		}
	}
	return s
}

func (s section) empty() bool { return s.text == "" && len(s.list) == 0 && len(s.rows) == 0 }

// Text prints the explanation for a terminal. clean is applied to what is printed.
func (x *Explanation) Text(w io.Writer, clean func(string) string) error {
	heading := x.Name
	if x.Title != "" {
		heading += ": " + x.Title
	}
	if _, err := fmt.Fprintln(w, strings.Join(broken(clean(heading), pageWidth), "\n")); err != nil {
		return err
	}
	for _, s := range x.sections() {
		if s.empty() {
			continue
		}
		fmt.Fprintln(w)
		if s.title != "" {
			fmt.Fprintln(w, strings.ToUpper(s.title))
		}
		if s.text != "" {
			for _, line := range paragraphs(s.text, pageWidth-2) {
				fmt.Fprintln(w, strings.TrimRight("  "+clean(line), " "))
			}
		}
		for _, item := range s.list {
			fmt.Fprintln(w, "  - "+strings.Join(broken(clean(oneLine(item)), 106), "\n    "))
		}
		if err := s.table(w, clean); err != nil {
			return err
		}
	}
	return nil
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// wrap breaks a text into lines of at most width octets, but for longer words.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return append(lines, line)
}

// Markdown prints the explanation as a chapter of a page.
func (x *Explanation) Markdown(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "## %s\n\n%s.\n", x.Name, x.Title); err != nil {
		return err
	}
	for _, s := range x.sections() {
		if s.empty() {
			continue
		}
		fmt.Fprintln(w)
		if s.title != "" {
			fmt.Fprintf(w, "### %s: %s\n\n", x.Name, strings.ToLower(s.title[:1])+s.title[1:])
		}
		switch {
		case s.title == "" && s.text != "":
			fmt.Fprintln(w, escapeMarkdown(s.text, true))
		case s.text != "":
			fmt.Fprintln(w, escapeMarkdown(s.text, false)+".")
		}
		for _, item := range s.list {
			fmt.Fprintln(w, "- "+strings.Join(wrap(escapeMarkdown(oneLine(item), false), 118), "\n  "))
		}
		s.markdownTable(w)
	}
	return nil
}

func (s section) markdownTable(w io.Writer) {
	if len(s.rows) == 0 {
		return
	}
	s = s.withoutEmptyColumns()
	fmt.Fprintln(w, "| "+strings.Join(s.header, " | ")+" |")
	fmt.Fprintln(w, "|"+strings.Repeat(" --- |", len(s.header)))
	for _, row := range s.rows {
		var cells []string
		for i, cell := range row {
			cell = strings.ReplaceAll(escapeMarkdown(oneLine(cell), false), "|", `\|`)
			if cell != "" && slices.Contains([]string{"path", "name", "label", "default", "fact", "profile", "algorithm"}, s.header[i]) {
				cell = "`" + strings.NewReplacer("&lt;", "<", "&gt;", ">").Replace(cell) + "`"
			}
			cells = append(cells, cell)
		}
		fmt.Fprintln(w, "| "+strings.Join(cells, " | ")+" |")
	}
}

// escapeMarkdown keeps angle brackets from becoming markup. Indented lines of a text of several lines are code already.
func escapeMarkdown(text string, lines bool) string {
	escape := strings.NewReplacer("<", "&lt;", ">", "&gt;", "*", `\*`)
	if !lines {
		return escape.Replace(text)
	}
	all := strings.Split(text, "\n")
	for i, line := range all {
		if !strings.HasPrefix(line, "    ") {
			all[i] = escape.Replace(line)
		}
	}
	return strings.Join(all, "\n")
}
