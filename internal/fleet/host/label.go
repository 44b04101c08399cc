package host

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"chancery/client"
	"chancery/internal/fault"
)

// maxLabels bounds a host's labels.
const maxLabels = 32

const (
	labelKeyLetters   = "abcdefghijklmnopqrstuvwxyz0123456789-_./"
	labelValueLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + labelKeyLetters + ":"
)

// checkLabels judges labels. Where some are removed, an empty value says which.
func checkLabels(labels map[string]string, removes bool) error {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		value := labels[key]
		switch {
		case key == "" || len(key) > 63 || strings.Trim(key, labelKeyLetters) != "":
			return fault.New(fault.Invalid, "label %.80q: a label's name is 1 to 63 of a-z, 0-9, - _ . and /", key).At("/labels")
		case value == "" && !removes:
			return fault.New(fault.Invalid, "label %q has no value; 1 to 63 of A-Z, a-z, 0-9, - _ . : and / pass", key).At("/labels")
		case len(value) > 63 || strings.Trim(value, labelValueLetters) != "":
			return fault.New(fault.Invalid, "label %q has the value %.80q; 1 to 63 of A-Z, a-z, 0-9, - _ . : and / pass", key, value).At("/labels")
		}
	}
	if len(labels) > maxLabels {
		return fault.New(fault.TooLarge, "there are %d labels; a host has at most %d", len(labels), maxLabels).At("/labels")
	}
	return nil
}

// relabel gives a host the labels given, removes those given without a value, and leaves the others.
func (r *row) relabel(labels map[string]string) error {
	next := maps.Clone(r.labels)
	if next == nil {
		next = map[string]string{}
	}
	for key, value := range labels {
		if value == "" {
			delete(next, key)
		} else {
			next[key] = value
		}
	}
	if len(next) > maxLabels {
		return fault.New(fault.TooLarge, "it would have %d labels; a host has at most %d", len(next), maxLabels).At("/labels")
	}
	r.labels = next
	return nil
}

// labelText are labels as they are stored.
func labelText(labels map[string]string) string {
	if len(labels) == 0 {
		return "{}"
	}
	text, err := json.Marshal(labels)
	if err != nil {
		return "{}" // no map of strings has no JSON form
	}
	return string(text)
}

// placementNames are the names of placements.
func placementNames(orders []client.PlacementOrder) []string {
	var names []string
	for _, o := range orders {
		names = append(names, o.Name)
	}
	return names
}
