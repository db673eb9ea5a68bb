"""The services that Nomad calls on a device plugin, as text.

Copied, field for field, from the files named beside each package (Nomad 1.11.3, go-plugin 1.7.0); left out
is what Nomad sends and a device plugin does not read (unknown fields are skipped), or what this one never
sends. An enum is written int32, which is the same on the wire.
"""

# go-plugin pings the plugin through the standard health service: grpc/health/v1/health.proto
HEALTH = """
package grpc.health.v1
service Health {
  rpc Check(HealthCheckRequest) returns (HealthCheckResponse)
}
message HealthCheckRequest {
  string service = 1;
}
message HealthCheckResponse {
  int32 status = 1;
}
"""

# go-plugin: internal/plugin/grpc_controller.proto
CONTROLLER = """
package plugin
service GRPCController {
  rpc Shutdown(Empty) returns (Empty)
}
message Empty {
}
"""

# nomad: plugins/shared/hclspec/hcl_spec.proto
HCLSPEC = """
package hashicorp.nomad.plugins.shared.hclspec
message Spec {
  oneof block {
    Object object = 1;
    Attr Attr = 3;
    BlockList block_list = 6;
    Default default = 9;
    Literal literal = 10;
  }
}
message Attr {
  string name = 1;
  string type = 2;
  bool required = 3;
}
message BlockList {
  string name = 1;
  uint64 min_items = 2;
  uint64 max_items = 3;
  Spec nested = 4;
}
message Default {
  Spec primary = 1;
  Spec default = 2;
}
message Literal {
  string value = 1;
}
message Object {
  map<string, Spec> attributes = 1;
}
"""

# nomad: plugins/base/proto/base.proto
BASE = """
package hashicorp.nomad.plugins.base.proto
service BasePlugin {
  rpc PluginInfo(PluginInfoRequest) returns (PluginInfoResponse)
  rpc ConfigSchema(ConfigSchemaRequest) returns (ConfigSchemaResponse)
  rpc SetConfig(SetConfigRequest) returns (SetConfigResponse)
}
message PluginInfoRequest {
}
message PluginInfoResponse {
  int32 type = 1;
  repeated string plugin_api_versions = 2;
  string plugin_version = 3;
  string name = 4;
}
message ConfigSchemaRequest {
}
message ConfigSchemaResponse {
  hashicorp.nomad.plugins.shared.hclspec.Spec spec = 1;
}
message SetConfigRequest {
  bytes msgpack_config = 1;
  string plugin_api_version = 3;
}
message SetConfigResponse {
}
"""

# nomad: plugins/shared/structs/proto/attribute.proto and stats.proto
STRUCTS = """
package hashicorp.nomad.plugins.shared.structs
message Attribute {
  oneof value {
    double float_val = 1;
    int64 int_val = 2;
    string string_val = 3;
    bool bool_val = 4;
  }
  string unit = 5;
}
message StatObject {
  map<string, StatObject> nested = 1;
  map<string, StatValue> attributes = 2;
}
message StatValue {
  google.protobuf.Int64Value int_numerator_val = 3;
  google.protobuf.Int64Value int_denominator_val = 4;
  google.protobuf.StringValue string_val = 5;
  string unit = 7;
  string desc = 8;
}
"""

# nomad: plugins/device/proto/device.proto
DEVICE = """
package hashicorp.nomad.plugins.device
service DevicePlugin {
  rpc Fingerprint(FingerprintRequest) returns (stream FingerprintResponse)
  rpc Reserve(ReserveRequest) returns (ReserveResponse)
  rpc Stats(StatsRequest) returns (stream StatsResponse)
}
message FingerprintRequest {
}
message FingerprintResponse {
  repeated DeviceGroup device_group = 1;
}
message DeviceGroup {
  string vendor = 1;
  string device_type = 2;
  string device_name = 3;
  repeated DetectedDevice devices = 4;
  map<string, hashicorp.nomad.plugins.shared.structs.Attribute> attributes = 5;
}
message DetectedDevice {
  string ID = 1;
  bool healthy = 2;
  string health_description = 3;
}
message ReserveRequest {
  repeated string device_ids = 1;
}
message ReserveResponse {
  ContainerReservation container_res = 1;
}
message ContainerReservation {
  map<string, string> envs = 1;
}
message StatsRequest {
  google.protobuf.Duration collection_interval = 1;
}
message StatsResponse {
  repeated DeviceGroupStats groups = 1;
}
message DeviceGroupStats {
  string vendor = 1;
  string type = 2;
  string name = 3;
  map<string, DeviceStats> instance_stats = 4;
}
message DeviceStats {
  hashicorp.nomad.plugins.shared.structs.StatValue summary = 1;
  hashicorp.nomad.plugins.shared.structs.StatObject stats = 2;
  google.protobuf.Timestamp timestamp = 3;
}
"""
