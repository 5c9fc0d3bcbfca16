package httpapi

import (
	"context"
	"maps"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
)

func (s *server) groupRoutes() {
	onType, onGroup := []domain.Code{domain.CodeGroupTypeNotFound}, []domain.Code{domain.CodeGroupNotFound}
	inUse := []domain.Code{domain.CodeInUse, domain.CodeSystemManaged}
	handle(s, route{
		method: "GET", path: "/v1/group-types", name: "listGroupTypes", scope: scopeConfigRead, status: 200, answer: groupTypes{},
		summary: "List the group types",
		text:    "Returns all group types, including the built-in one, sorted by id.",
		codes:   onQuery,
	}, s.listGroupTypes)
	handle(s, route{
		method: "GET", path: "/v1/group-types/{groupType}", name: "getGroupType", scope: scopeConfigRead, status: 200, answer: domain.GroupType{},
		summary: "Get a group type",
		text:    "Returns which roles members of such groups may have.",
		codes:   codes(onType, onQuery),
	}, s.getGroupType)
	handle(s, route{
		method: "PUT", path: "/v1/group-types/{groupType}", name: "putGroupType", scope: scopeConfigWrite, status: 200, answer: domain.GroupType{},
		summary: "Define or change a group type",
		text:    "Creates or replaces the group type. Refused if existing memberships would break the new rule; the detail says how many.",
		example: `{"roleMode":"allowed_roles","allowedRoles":["ADMIN","USER"]}`,
		codes:   codes(onCommand, inUse),
	}, s.putGroupType)
	handle(s, route{
		method: "DELETE", path: "/v1/group-types/{groupType}", name: "deleteGroupType", scope: scopeConfigWrite, status: 204,
		summary: "Delete a group type",
		text:    "Deletes the group type. Refused while a group has this type, and for built-in group types.",
		codes:   codes(onType, onCommand, inUse),
	}, s.deleteGroupType)
	handle(s, route{
		method: "GET", path: "/v1/groups", name: "listGroups", scope: scopeConfigRead, status: 200, answer: groups{},
		summary: "List the groups",
		text:    "Returns all groups, including the built-in ones, sorted by id.",
		codes:   onQuery,
	}, s.listGroups)
	handle(s, route{
		method: "GET", path: "/v1/groups/{groupId}", name: "getGroup", scope: scopeConfigRead, status: 200, answer: domain.Group{},
		summary: "Get a group",
		text:    "Returns the group with its parent in the tree.",
		codes:   codes(onGroup, onQuery),
	}, s.getGroup)
	handle(s, route{
		method: "PUT", path: "/v1/groups/{groupId}", name: "putGroup", scope: scopeConfigWrite, status: 200, answer: domain.Group{},
		summary: "Define, change or move a group",
		text:    "Creates or replaces the group. Groups form a tree of at most 32 levels. Properties that are not given become empty; without parentId the group is a root. Existing memberships keep the path they were set with until they are set again.",
		example: `{"groupName":"Berlin","groupType":"OFFICE","parentId":"EUROPE"}`,
		codes:   codes(onCommand, inUse),
	}, s.putGroup)
	handle(s, route{
		method: "DELETE", path: "/v1/groups/{groupId}", name: "deleteGroup", scope: scopeConfigWrite, status: 204,
		summary: "Delete a group",
		text:    "Deletes the group. Refused while it has members or child groups, and for built-in groups.",
		codes:   codes(onGroup, onCommand, inUse),
	}, s.deleteGroup)
}

// GroupTypeID identifies the group type a request is about.
type GroupTypeID struct {
	GroupType string `path:"groupType" doc:"The group type's id." example:"OFFICE"`
}

// GroupID identifies the group a request is about.
type GroupID struct {
	GroupID string `path:"groupId" doc:"The group's id." example:"BERLIN"`
}

// groupTypes is the list of all group types.
type groupTypes struct {
	GroupTypes []domain.GroupType `json:"groupTypes" doc:"All group types, sorted by id."`
	Next       *string            `json:"next" doc:"Always null: the list is never paged."`
}

type listGroupTypesInput struct{ Query }

func (s *server) listGroupTypes(ctx context.Context, _ *call, in *listGroupTypesInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	var list groupTypes
	for _, id := range slices.Sorted(maps.Keys(config.GroupTypes)) {
		list.GroupTypes = append(list.GroupTypes, config.GroupTypes[id])
	}
	return a.rendered(list)
}

type getGroupTypeInput struct {
	GroupTypeID
	Query
}

func (s *server) getGroupType(ctx context.Context, _ *call, in *getGroupTypeInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	groupType, ok := config.GroupTypes[in.GroupType]
	if !ok {
		return nil, &domain.Error{Code: domain.CodeGroupTypeNotFound, Detail: "There is no such group type."}
	}
	a.ETag = etag(groupType.Revision)
	return a.rendered(groupType)
}

type putGroupTypeInput struct {
	GroupTypeID
	Command
	JSON[newGroupType]
}

// newGroupType is the body of PUT /v1/group-types/{groupType}.
type newGroupType struct {
	RoleMode     domain.RoleMode `json:"roleMode" enum:"any_roles,no_roles,roles_required,allowed_roles" doc:"any_roles: any number of roles; no_roles: none; roles_required: at least one; allowed_roles: any number of those in allowedRoles."`
	AllowedRoles []string        `json:"allowedRoles,omitzero" maxItems:"100" doc:"The roles members may have. Required with roleMode allowed_roles, otherwise not allowed."`
}

func (s *server) putGroupType(ctx context.Context, c *call, in *putGroupTypeInput) (*answer, error) {
	cmd := domain.PutGroupType{GroupType: in.GroupType, RoleMode: in.value.RoleMode, AllowedRoles: in.value.AllowedRoles}
	return s.configure(ctx, c, in.Command, cmd, func(config *domain.Config) (any, eventstore.Revision) {
		groupType := config.GroupTypes[in.GroupType]
		return groupType, groupType.Revision
	})
}

type deleteGroupTypeInput struct {
	GroupTypeID
	Command
}

func (s *server) deleteGroupType(ctx context.Context, c *call, in *deleteGroupTypeInput) (*answer, error) {
	return s.configure(ctx, c, in.Command, domain.DeleteGroupType{GroupType: in.GroupType}, deleted)
}

// groups is a list of groups.
type groups struct {
	Groups []domain.Group `json:"groups" doc:"The groups, sorted by id."`
	Next   *string        `json:"next" doc:"Always null: the list is never paged."`
}

type listGroupsInput struct {
	Query
	ParentID  string `query:"parentId" doc:"Only child groups of this group."`
	GroupType string `query:"groupType" doc:"Only groups of this type."`
}

func (s *server) listGroups(ctx context.Context, _ *call, in *listGroupsInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	var list groups
	for _, id := range slices.Sorted(maps.Keys(config.Groups)) {
		g := config.Groups[id]
		if (in.ParentID == "" || g.ParentID == in.ParentID) && (in.GroupType == "" || g.GroupType == in.GroupType) {
			list.Groups = append(list.Groups, g)
		}
	}
	return a.rendered(list)
}

type getGroupInput struct {
	GroupID
	Query
}

func (s *server) getGroup(ctx context.Context, _ *call, in *getGroupInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	group, ok := config.Groups[in.GroupID.GroupID]
	if !ok {
		return nil, &domain.Error{Code: domain.CodeGroupNotFound, Detail: "There is no such group."}
	}
	a.ETag = etag(group.Revision)
	return a.rendered(group)
}

type putGroupInput struct {
	GroupID
	Command
	JSON[newGroup]
}

// newGroup is the body of PUT /v1/groups/{groupId}.
type newGroup struct {
	GroupName    string                    `json:"groupName,omitzero" maxLength:"255" doc:"Display name."`
	GroupType    string                    `json:"groupType" doc:"The group's type."`
	ParentID     string                    `json:"parentId,omitzero" doc:"The parent group. Default: none, the group is a root."`
	Description  string                    `json:"description,omitzero" maxLength:"2048" doc:"What the group is for."`
	CustomFields map[string]jsontext.Value `json:"customFields,omitzero" doc:"The application's custom fields. Configuration cannot be erased; do not put personal data in it."`
}

func (s *server) putGroup(ctx context.Context, c *call, in *putGroupInput) (*answer, error) {
	id, body := in.GroupID.GroupID, in.value
	cmd := domain.PutGroup{GroupID: id, GroupName: body.GroupName, GroupType: body.GroupType, ParentID: body.ParentID,
		Description: body.Description, CustomFields: body.CustomFields}
	return s.configure(ctx, c, in.Command, cmd, func(config *domain.Config) (any, eventstore.Revision) {
		group := config.Groups[id]
		return group, group.Revision
	})
}

type deleteGroupInput struct {
	GroupID
	Command
}

func (s *server) deleteGroup(ctx context.Context, c *call, in *deleteGroupInput) (*answer, error) {
	return s.configure(ctx, c, in.Command, domain.DeleteGroup{GroupID: in.GroupID.GroupID}, deleted)
}
