job "effects-scaled" {
  group "scaled" {
    count = 2

    update {
      health_check     = "task_states"
      min_healthy_time = "1s"
    }

    scaling {
      min = 1
      max = 5
    }

    task "scaled" {
      driver = "raw_exec"

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
