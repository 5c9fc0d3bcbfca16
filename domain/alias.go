package domain

import (
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// verified reports whether a flag was set by the change.
func (u userUpdated) verified(flag string) bool {
	changes, ok := u.Changes.(jsontext.Value)
	if !ok || !slices.Contains(u.Fields, flag) {
		return false
	}
	var members map[string]jsontext.Value
	return json.Unmarshal(changes, &members, trusted) == nil && string(members[flag]) == "true"
}

// aliases are the further names of p.
func (p publicEvent) aliases() (names []string) {
	for _, a := range catalogued[p.name].Aliases {
		if a.when == nil || a.when(p.data) {
			names = append(names, a.Name)
		}
	}
	return names
}

// Told is the name under which somebody who asked for patterns is told of e:
// that of the first pattern that selects the event or one of its aliases; or
// "". Who asks by an alias is told by the alias: his system knows no other
// name. An event that several patterns select is told once.
func (e PublicEvent) Told(patterns []string) string {
	for _, p := range patterns {
		if Selects(p, e.Type) {
			return e.Type
		}
		for _, name := range e.Aliases {
			if Selects(p, name) {
				return name
			}
		}
	}
	return ""
}
