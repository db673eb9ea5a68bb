job "effects-system" {
  type = "system"

  update {
    max_parallel = 1
    health_check = "task_states"
  }

  group "every" {
    task "every" {
      driver       = "raw_exec"
      kill_timeout = "6s"

      config {
        command = "sleep"
        args    = ["3600"]
      }

      env {
        GREETING = "hello"
      }

      resources {
        memory = 32
      }
    }
  }
}
