package domain

import (
	"slices"
	"strings"
)

// PublicType is an entry of the public catalogue: a type of public event, which
// external systems select by name.
type PublicType struct {
	Name    string   // USER_CREATED
	When    string   // the cause, as a clause after "when"
	Data    any      // a zero value of the type of PublicEvent.Data
	From    []string // types of the events in the log that cause it
	Aliases []Alias
}

// Alias is another name of a public event, for systems that know it under that name.
type Alias struct {
	Name string
	Of   string // which events have the alias; "" for all

	when func(data any) bool // decides the same from the event's data; nil: all
}

// OfAccount reports whether events of this type are about an account. The others
// are about the configuration.
func (t PublicType) OfAccount() bool { return strings.HasPrefix(t.From[0], "account.") }

// catalogued is an event that introduces public types, which are defined beside its
// public method. From is needed only if other events cause the type, too.
type catalogued interface{ catalogue() []PublicType }

// Catalogue lists all public types in the order of the events that introduce them.
// Aliases with a condition come before those without, so that a prefix selects the
// more specific name. TestCatalogue compares it with what the events return.
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

// typesOf returns the event types of events.
func typesOf(events ...Event) (types []string) {
	for _, e := range events {
		types = append(types, e.eventType())
	}
	return types
}

// objectSetTypes returns the public types of a configuration object that is created
// or changed. what names its kind in words.
func objectSetTypes(noun, what string) []PublicType {
	return []PublicType{
		{Name: noun + "_CREATED", When: what + " is created", Data: configChanged{}},
		{Name: noun + "_UPDATED", When: what + " is changed", Data: configChanged{}},
	}
}

// objectDeletedTypes returns the public type of a configuration object that is deleted.
func objectDeletedTypes(noun, when string) []PublicType {
	return []PublicType{{Name: noun + "_DELETED", When: when, Data: configChanged{}}}
}

// PublicNames lists the names in the public catalogue, sorted.
var PublicNames = func() []string {
	names := make([]string, len(Catalogue))
	for i, t := range Catalogue {
		names[i] = t.Name
	}
	slices.Sort(names)
	return names
}()

// publicTypes has the entries of the catalogue by name.
var publicTypes = func() map[string]PublicType {
	types := make(map[string]PublicType, len(Catalogue))
	for _, t := range Catalogue {
		types[t.Name] = t
	}
	return types
}()

// Selectable reports whether pattern selects a public event or an alias of one.
func Selectable(pattern string) bool {
	return slices.ContainsFunc(Catalogue, func(t PublicType) bool {
		return Selects(pattern, t.Name) || slices.ContainsFunc(t.Aliases, func(a Alias) bool { return Selects(pattern, a.Name) })
	})
}

// Selects reports whether pattern selects name. A pattern is a public name, or a
// prefix of some followed by a star.
func Selects(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}
