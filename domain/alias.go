package domain

// aliases returns the other names of p.
func (p publicEvent) aliases() (names []string) {
	for _, a := range publicTypes[p.name].Aliases {
		if a.when == nil || a.when(p.data) {
			names = append(names, a.Name)
		}
	}
	return names
}

// EventName returns the name under which e is sent to a subscriber with these
// patterns: the event's name or the alias that the first matching pattern selects,
// or "" if none matches. A subscriber that selects by an alias gets the alias,
// because its system knows no other name.
func (e PublicEvent) EventName(patterns []string) string {
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
