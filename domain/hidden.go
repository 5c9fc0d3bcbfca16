package domain

import (
	"maps"
	"slices"
)

// Hidden are the keys of internal fields, which only admins see. Accounts and
// entries are shown to others Without them.
type Hidden map[string]bool

// Hidden is what only admins may see of accounts. It is nil where no field is
// internal.
func (c *Config) Hidden() Hidden { return c.hidden }

func hidden(fields map[string]Field) Hidden {
	var h Hidden
	for key, f := range fields {
		if f.Internal {
			if h == nil {
				h = Hidden{}
			}
			h[key] = true
		}
	}
	return h
}

// Without returns a as it is shown to who must not see h.
func (a Account) Without(h Hidden) Account {
	if len(h) == 0 {
		return a
	}
	a.CustomFields, a.FieldClaims = without(a.CustomFields, h), without(a.FieldClaims, h)
	a.CombinedFrom = slices.Clone(a.CombinedFrom)
	for i := range a.CombinedFrom {
		c := &a.CombinedFrom[i]
		c.FilledFields = h.names(c.FilledFields)
		c.CustomFields, c.FieldClaims = without(c.CustomFields, h), without(c.FieldClaims, h)
	}
	a.UserIDs = slices.DeleteFunc(slices.Clone(a.UserIDs), func(u UserID) bool { return h[u.FieldKey] })
	return a
}

// fielded is an event that holds values of custom fields, or names some.
type fielded interface {
	Event
	without(h Hidden) Event
}

// Without returns x as it is shown to who must not see h.
func (x Entry) Without(h Hidden) Entry {
	if e, ok := x.Event.(fielded); ok && len(h) > 0 {
		x.Event = e.without(h)
	}
	return x
}

func (e AccountCreated) without(h Hidden) Event {
	e.CustomFields, e.ClearCustomFields, e.FieldClaims = without(e.CustomFields, h), without(e.ClearCustomFields, h), without(e.FieldClaims, h)
	return e
}

func (e CustomFieldsUpdated) without(h Hidden) Event {
	e.Fields = h.names(e.Fields)
	e.Values, e.ClearValues, e.FieldClaims = without(e.Values, h), without(e.ClearValues, h), without(e.FieldClaims, h)
	return e
}

func (e AccountMerged) without(h Hidden) Event {
	e.Filled, e.Conflicts = h.names(e.Filled), h.names(e.Conflicts)
	e.CustomFields, e.FieldClaims = without(e.CustomFields, h), without(e.FieldClaims, h)
	return e
}

func (e AccountSeparated) without(h Hidden) Event {
	e.Unset = h.names(e.Unset)
	return e
}

// from returns a copy of r with the fields in h removed.
func (h Hidden) from(r Result[Account]) Result[Account] {
	if len(h) == 0 {
		return r
	}
	r.State = r.State.Without(h)
	r.Others, r.Events = slices.Clone(r.Others), slices.Clone(r.Events)
	for i := range r.Others {
		r.Others[i] = r.Others[i].Without(h)
	}
	for i := range r.Events {
		r.Events[i] = r.Events[i].Without(h)
	}
	return r
}

// names copies keys without those of h.
func (h Hidden) names(keys []string) []string {
	return slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return h[key] })
}

// without copies m without the members of h; nothing is nil.
func without[V any](m map[string]V, h Hidden) map[string]V {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(key string, _ V) bool { return h[key] })
	return m
}
