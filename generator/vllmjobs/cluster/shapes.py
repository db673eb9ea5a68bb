"""The shapes of Nomad's and Consul's answers, less those of jobs: the fields that are read, and their types.

An answer may hold more, which stays. Go writes `null` for an empty list or map, and for what is not known.
The names are those of api/{allocations,deployments,evaluations,nodes,resources,tasks,variables}.go of
Nomad, and api/{health,kv}.go of Consul.
"""

from typing import NotRequired, TypedDict


class _Port(TypedDict):
    """A port of an allocation."""

    Label: str
    Value: int


class _SharedPort(_Port):
    """A port of a group's network."""

    HostIP: str


class _Network(TypedDict):
    """A network of a task."""

    IP: str
    DynamicPorts: NotRequired[list[_Port] | None]
    ReservedPorts: NotRequired[list[_Port] | None]


class _Cpu(TypedDict):
    """The CPU of a node or a task."""

    CpuShares: NotRequired[int | None]


class _Memory(TypedDict):
    """The memory of a node or a task."""

    MemoryMB: NotRequired[int | None]


class _Disk(TypedDict):
    """The disk of a node."""

    DiskMB: NotRequired[int | None]


class _HeldDevice(TypedDict):
    """The devices of one kind that a task holds."""

    Type: str
    DeviceIDs: list[str] | None


class _TaskResources(TypedDict):
    """The resources of one task of an allocation."""

    Cpu: NotRequired[_Cpu | None]
    Memory: NotRequired[_Memory | None]
    Networks: NotRequired[list[_Network] | None]
    Devices: NotRequired[list[_HeldDevice] | None]


class _SharedResources(_Disk):
    """The resources that the tasks of an allocation share."""

    Ports: NotRequired[list[_SharedPort] | None]


class _Resources(TypedDict):
    """The resources of an allocation."""

    Tasks: NotRequired[dict[str, _TaskResources] | None]
    Shared: NotRequired[_SharedResources | None]


class _Health(TypedDict):
    """The state of an allocation in its deployment."""

    Healthy: NotRequired[bool | None]
    Canary: NotRequired[bool | None]


class _TaskEvent(TypedDict):
    """One thing that happened to a task."""

    Type: str
    Time: int
    DisplayMessage: str


class _TaskState(TypedDict):
    """The state of a task."""

    State: str
    Restarts: int
    Events: NotRequired[list[_TaskEvent] | None]


class HeldAllocation(TypedDict):
    """An allocation, as far as it holds resources of a node."""

    ID: str
    Name: str
    Namespace: str
    JobID: str
    TaskGroup: str
    NodeID: str
    ClientStatus: str
    AllocatedResources: NotRequired[_Resources | None]


class JobAllocation(TypedDict):
    """An allocation, as an instance of its job."""

    ID: str
    TaskGroup: str
    NodeName: str
    JobVersion: int
    DesiredStatus: str
    ClientStatus: str
    CreateIndex: int
    DeploymentStatus: NotRequired[_Health | None]
    TaskStates: NotRequired[dict[str, _TaskState] | None]
    AllocatedResources: NotRequired[_Resources | None]


class _Attribute(TypedDict):
    """An attribute of a device, in one of these."""

    Int: NotRequired[int | None]
    Float: NotRequired[float | None]
    String: NotRequired[str | None]
    Unit: NotRequired[str | None]


class _Device(TypedDict):
    """One device of a node."""

    ID: str
    Healthy: bool
    HealthDescription: NotRequired[str | None]


class _Devices(TypedDict):
    """The devices of one kind of a node."""

    Type: str
    Name: str
    Attributes: dict[str, _Attribute] | None
    Instances: list[_Device] | None


class _NodeResources(TypedDict):
    """The resources of a node."""

    Cpu: NotRequired[_Cpu | None]
    Memory: NotRequired[_Memory | None]
    Disk: NotRequired[_Disk | None]
    Devices: NotRequired[list[_Devices] | None]


class _Driver(TypedDict):
    """A driver of a node."""

    Healthy: bool


class ListedNode(TypedDict):
    """A node of the list."""

    ID: str
    Name: str
    Datacenter: str
    Status: str
    SchedulingEligibility: str
    NodePool: NotRequired[str | None]
    NodeClass: NotRequired[str | None]
    Drain: NotRequired[bool]
    Drivers: NotRequired[dict[str, _Driver] | None]
    NodeResources: NotRequired[_NodeResources | None]
    ReservedResources: NotRequired[_NodeResources | None]


class WholeNode(TypedDict):
    """A node with its Meta."""

    Meta: NotRequired[dict[str, str] | None]


class _DeploymentGroup(TypedDict):
    """The state of one group of a deployment."""

    Promoted: bool
    DesiredCanaries: int
    DesiredTotal: int
    HealthyAllocs: int
    UnhealthyAllocs: int
    PlacedCanaries: list[str] | None
    RequireProgressBy: NotRequired[str | None]


class JobDeployment(TypedDict):
    """A deployment of a job."""

    ID: str
    JobVersion: int
    Status: str
    StatusDescription: str
    CreateIndex: int
    TaskGroups: NotRequired[dict[str, _DeploymentGroup] | None]


class Evaluation(TypedDict):
    """An evaluation of a job."""

    Status: str
    CreateIndex: int
    JobModifyIndex: NotRequired[int]


class KeptVariable(TypedDict):
    """A Nomad Variable."""

    Items: dict[str, str]
    ModifyIndex: int


class TokenSelf(TypedDict):
    """The token that a request was sent with."""

    AccessorID: str
    Name: NotRequired[str | None]


class _Member(TypedDict):
    """A server of a region."""

    Tags: dict[str, str]


class Members(TypedDict):
    """The servers that an agent knows."""

    ServerRegion: NotRequired[str | None]
    Members: NotRequired[list[_Member] | None]


class WriteAnswer(TypedDict):
    """The answer to a write."""

    JobModifyIndex: NotRequired[int]


class LogFrame(TypedDict):
    """A piece of a log; without Data, a heartbeat."""

    Data: NotRequired[str | None]


class KeyValue(TypedDict):
    """A key of Consul's KV; py-consul has decoded its value."""

    Key: str
    Value: bytes | None
    Flags: int
    ModifyIndex: int


class _Service(TypedDict):
    """An instance of a service."""

    ID: str
    Address: str
    Port: NotRequired[int | None]
    Tags: list[str] | None


class _ServiceNode(TypedDict):
    """The node of an instance."""

    Node: str
    Address: str


class _Check(TypedDict):
    """A check of an instance."""

    Status: str


class HealthEntry(TypedDict):
    """An instance of a service with its node and its checks."""

    Node: _ServiceNode
    Service: _Service
    Checks: list[_Check] | None
