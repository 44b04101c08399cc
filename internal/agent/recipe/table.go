package recipe

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// pageWidth is how wide a terminal is that an explanation is printed for.
const pageWidth = 120

// narrowest is how far a column of a table is narrowed while another is wider.
const narrowest = 8

// table prints the rows for a terminal: what does not fit beside the rest goes on below, in its own column.
func (s section) table(w io.Writer, clean func(string) string) error {
	if len(s.rows) == 0 {
		return nil
	}
	s = s.withoutEmptyColumns()
	rows := [][]string{s.header}
	for _, row := range s.rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = clean(oneLine(cell)); cells[i] == "" {
				cells[i] = "-"
			}
		}
		rows = append(rows, cells)
	}
	widths := columnWidths(rows, pageWidth-2)
	for _, row := range rows {
		if err := printRow(w, row, widths); err != nil {
			return err
		}
	}
	return nil
}

// columnWidths are those of the widest cells, two more between columns, with the widest narrowed until all fit; the first
// only where it has twice the width of the others.
func columnWidths(rows [][]string, most int) []int {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for {
		sum := 2 * (len(widths) - 1)
		for _, width := range widths {
			sum += width
		}
		weights := slices.Clone(widths)
		weights[0] /= 2 // names and paths, which are typed again
		i := slices.Index(weights, slices.Max(weights))
		if sum <= most || widths[i] <= narrowest {
			return widths
		}
		widths[i]--
	}
}

func printRow(w io.Writer, row []string, widths []int) error {
	cells := make([][]string, len(row))
	height := 0
	for i, cell := range row {
		cells[i] = broken(cell, widths[i])
		height = max(height, len(cells[i]))
	}
	for line := range height {
		text := " "
		for i := range row {
			part := ""
			if line < len(cells[i]) {
				part = cells[i][line]
			}
			text += " " + part + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(part)+1)
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(text, " ")); err != nil {
			return err
		}
	}
	return nil
}

// broken breaks a text into lines of at most width characters: between words, and a longer word after one of the characters at
// which paths and names are joined, or anywhere where there is none.
func broken(text string, width int) []string {
	var words []string
	for word := range strings.FieldsSeq(text) {
		for rest := []rune(word); len(rest) > width; {
			at := width
			for i := width; i > width/2; i-- {
				if strings.ContainsRune("/,:._-@", rest[i-1]) {
					at = i
					break
				}
			}
			words, rest = append(words, string(rest[:at])), rest[at:]
			word = string(rest)
		}
		words = append(words, word)
	}
	return joinedWords(words, width)
}

// joinedWords fills lines of at most width characters, but for longer words.
func joinedWords(words []string, width int) []string {
	var lines []string
	line := ""
	for _, word := range words {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return append(lines, line)
}

// paragraphs fills the lines of a text anew for a width. Lines that begin with blanks are as somebody set them, and stay where
// they fit.
func paragraphs(text string, width int) []string {
	var lines, words []string
	flush := func() {
		if words != nil {
			lines = append(lines, joinedWords(words, width)...)
		}
		words = nil
	}
	for line := range strings.SplitSeq(text, "\n") {
		switch set := strings.HasPrefix(line, " "); {
		case strings.TrimSpace(line) == "":
			flush()
			lines = append(lines, "")
		case set:
			flush()
			lines = append(lines, setLine(line, width)...)
		default:
			words = append(words, strings.Fields(line)...)
		}
	}
	flush()
	return lines
}

// setLine keeps a line, or breaks one that is too long and goes on deeper within.
func setLine(line string, width int) []string {
	if utf8.RuneCountInString(line) <= width {
		return []string{line}
	}
	indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
	parts := broken(line, width-len(indent)-4)
	for i := range parts {
		if parts[i] = indent + parts[i]; i > 0 {
			parts[i] = "    " + parts[i]
		}
	}
	return parts
}
