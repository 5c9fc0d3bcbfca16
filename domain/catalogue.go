package domain

import (
	"slices"
	"strings"
)

// PublicType is an entry of the public catalogue: a kind of public event that
// external systems select by name.
type PublicType struct {
	Name    string   // USER_CREATED
	When    string   // it is told, as what completes «told when»
	Data    any      // a zero value of what PublicEvent.Data is made of
	From    []string // types of the events in the log that it comes of
	Aliases []Alias
}

// Alias is another name of a public event, for systems that know it by that.
type Alias struct {
	Name string
	Of   string // which of the events; "" for all

	when func(data any) bool // says the same of the event's data; nil: always
}

// OfAccount reports whether events of this type are about an account; the
// others are about the configuration.
func (t PublicType) OfAccount() bool { return strings.HasPrefix(t.From[0], "account.") }

// catalogued is an event that introduces public events. It lists them beside
// its public method; one that is told of further events lists them in From,
// its own type among them.
type catalogued interface{ catalogue() []PublicType }

// Catalogue lists all public events, in the order of the events that introduce
// them. Aliases with a condition come before those without: who asks by a
// prefix is told the more particular name. A test holds it to what the events'
// public methods return.
var Catalogue = func() (all []PublicType) {
	for _, e := range events {
		c, ok := e.(catalogued)
		if !ok {
			continue
		}
		for _, t := range c.catalogue() {
			if t.From == nil {
				t.From = typesOf(e)
			}
			all = append(all, t)
		}
	}
	return all
}()

// typesOf returns the types of events.
func typesOf(events ...Event) (types []string) {
	for _, e := range events {
		types = append(types, e.eventType())
	}
	return types
}

// objectSetTypes returns the public events of objects of the configuration
// that are set. what is their kind in words.
func objectSetTypes(noun, what string) []PublicType {
	return []PublicType{
		{Name: noun + "_CREATED", When: what + " is made", Data: configChanged{}},
		{Name: noun + "_UPDATED", When: what + " is changed", Data: configChanged{}},
	}
}

// objectDeletedTypes returns the public event of those that are deleted.
func objectDeletedTypes(noun, when string) []PublicType {
	return []PublicType{{Name: noun + "_DELETED", When: when, Data: configChanged{}}}
}

// PublicNames is the names of the public catalogue, sorted.
var PublicNames = func() []string {
	names := make([]string, len(Catalogue))
	for i, t := range Catalogue {
		names[i] = t.Name
	}
	slices.Sort(names)
	return names
}()

// publicTypes are the entries of the catalogue by their names.
var publicTypes = func() map[string]PublicType {
	types := make(map[string]PublicType, len(Catalogue))
	for _, t := range Catalogue {
		types[t.Name] = t
	}
	return types
}()

// Selectable reports whether pattern names a public event or an alias, or is a
// prefix of one's name followed by a star.
func Selectable(pattern string) bool {
	return slices.ContainsFunc(Catalogue, func(t PublicType) bool {
		return Selects(pattern, t.Name) || slices.ContainsFunc(t.Aliases, func(a Alias) bool { return Selects(pattern, a.Name) })
	})
}

// Selects reports whether pattern, a public name or a prefix followed by a
// star, selects name.
func Selects(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}
