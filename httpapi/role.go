package httpapi

import (
	"context"
	"maps"
	"slices"

	"accountledger/domain"
	"accountledger/eventstore"
)

func (s *server) roleRoutes() {
	onRole := []domain.Code{domain.CodeRoleNotFound}
	handle(s, route{
		method: "GET", path: "/v1/roles", name: "listRoles", scope: scopeConfigRead, status: 200, answer: roles{},
		summary: "List the roles",
		text:    "Returns all roles, including the built-in ones, sorted by id.",
		codes:   onQuery,
	}, s.listRoles)
	handle(s, route{
		method: "GET", path: "/v1/roles/{role}", name: "getRole", scope: scopeConfigRead, status: 200, answer: domain.Role{},
		summary: "Get a role",
		text:    "Returns a role that members of groups can have.",
		codes:   codes(onRole, onQuery),
	}, s.getRole)
	handle(s, route{
		method: "PUT", path: "/v1/roles/{role}", name: "putRole", scope: scopeConfigWrite, status: 200, answer: domain.Role{},
		summary: "Define or change a role",
		text:    "Creates the role, or replaces its name and description. This also works for built-in roles.",
		example: `{"name":"Auditor","description":"Reads everything."}`,
		codes:   onCommand,
	}, s.putRole)
	handle(s, route{
		method: "DELETE", path: "/v1/roles/{role}", name: "deleteRole", scope: scopeConfigWrite, status: 204,
		summary: "Delete a role",
		text:    "Deletes the role. Refused while an account has it, and for built-in roles.",
		codes:   codes(onRole, onCommand, []domain.Code{domain.CodeInUse, domain.CodeSystemManaged}),
	}, s.deleteRole)
}

// RoleID identifies the role a request is about.
type RoleID struct {
	Role string `path:"role" doc:"The role's id." example:"CUSTOMER"`
}

// roles is the list of all roles.
type roles struct {
	Roles []domain.Role `json:"roles" doc:"All roles, sorted by id."`
	Next  *string       `json:"next" doc:"Always null: the list is never paged."`
}

type listRolesInput struct{ Query }

func (s *server) listRoles(ctx context.Context, _ *call, in *listRolesInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	var list roles
	for _, id := range slices.Sorted(maps.Keys(config.Roles)) {
		list.Roles = append(list.Roles, config.Roles[id])
	}
	return a.rendered(list)
}

type getRoleInput struct {
	RoleID
	Query
}

func (s *server) getRole(ctx context.Context, _ *call, in *getRoleInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	role, ok := config.Roles[in.Role]
	if !ok {
		return nil, &domain.Error{Code: domain.CodeRoleNotFound, Detail: "There is no such role."}
	}
	a.ETag = etag(role.Revision)
	return a.rendered(role)
}

type putRoleInput struct {
	RoleID
	Command
	JSON[newRole]
}

// newRole is the body of PUT /v1/roles/{role}.
type newRole struct {
	Name        string `json:"name,omitzero" maxLength:"255" doc:"Display name."`
	Description string `json:"description,omitzero" maxLength:"2048" doc:"What the role is for."`
}

func (s *server) putRole(ctx context.Context, c *call, in *putRoleInput) (*answer, error) {
	cmd := domain.PutRole{Role: in.Role, Name: in.value.Name, Description: in.value.Description}
	return s.configure(ctx, c, in.Command, cmd, func(config *domain.Config) (any, eventstore.Revision) {
		role := config.Roles[in.Role]
		return role, role.Revision
	})
}

type deleteRoleInput struct {
	RoleID
	Command
}

func (s *server) deleteRole(ctx context.Context, c *call, in *deleteRoleInput) (*answer, error) {
	return s.configure(ctx, c, in.Command, domain.DeleteRole{Role: in.Role}, deleted)
}

// deleted shows a deleted object: nothing.
func deleted(*domain.Config) (any, eventstore.Revision) { return nil, 0 }
